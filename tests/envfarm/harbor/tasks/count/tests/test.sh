#!/bin/bash
right=0
[ "$(tr -d '[:space:]' < answer.txt)" = "$EXPECTED" ] && right=1
tidy=0
[ "$(wc -l < answer.txt)" = 1 ] && tidy=1
printf '{"reward": %s, "tidy": %s}\n' "$right" "$tidy" > /logs/verifier/reward.json
