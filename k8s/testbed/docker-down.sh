#!/usr/bin/env bash
# Stop the engine that docker-up.sh STATE started, and everything in it; STATE is removed. For a trap.
# usage: docker-down.sh STATE
set -uo pipefail
D=${1:?usage: docker-down.sh STATE}
H=unix://$D/docker.sock
containers=$(timeout 10 docker -H "$H" ps -aq 2>/dev/null)
[ -n "$containers" ] && timeout 30 docker -H "$H" rm -f $containers >/dev/null 2>&1 # a runtime may hang: not for ever
pid=$(cat "$D/dockerd.pid" 2>/dev/null) && kill "$pid" 2>/dev/null
for _ in $(seq 150); do
  [ -n "${pid:-}" ] && kill -0 "$pid" 2>/dev/null || break
  sleep 0.1
done
[ -n "${pid:-}" ] && kill -9 "$pid" 2>/dev/null
# where dockerd itself was killed, its containerd and its shims are still there: theirs are the command lines that name STATE
for left in $(ps -eo pid,args | awk -v d="$D/" 'index($0, d) && /containerd|runsc/ && !/awk/ {print $1}'); do kill -9 "$left" 2>/dev/null; done
for mount in $(awk -v d="$D/" 'index($2, d) == 1 {print $2}' /proc/self/mounts | sort -r); do umount -l "$mount"; done
rm -rf "$D"
