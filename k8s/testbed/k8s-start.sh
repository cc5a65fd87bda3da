#!/usr/bin/env bash
# Start a part of the cluster below STATE, also again after it was killed: what k8s-up.sh wrote to STATE/run/PART.sh.
# usage: k8s-start.sh STATE PART     apiserver or kubelet; returns at once
set -euo pipefail
C=${1:?usage: k8s-start.sh STATE PART}
PART=${2:?usage: k8s-start.sh STATE PART}
setsid nohup "$C/run/$PART.sh" >>"$C/log/$PART.log" 2>&1 </dev/null &
echo $! >"$C/run/$PART.pid"
