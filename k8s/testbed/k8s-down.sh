#!/usr/bin/env bash
# Stop the cluster that k8s-up.sh started, and everything in it; STATE is removed. For a trap.
# usage: k8s-down.sh STATE
set -uo pipefail
C=${1:?usage: k8s-down.sh STATE}
RUN=$C/run
[ -d "$RUN" ] || exit 0
S=$RUN/containerd.sock
stop() { # SIGNAL NAME...
  local signal=$1 name
  shift
  for name in "$@"; do kill "-$signal" "$(cat "$RUN/$name.pid" 2>/dev/null)" 2>/dev/null; done
}
stop TERM kubelet sched kcm proxy
ctr() { timeout 10 ctr -a "$S" -n k8s.io "$@" 2>/dev/null; }
networks=$(for c in $(ctr containers list -q); do ctr containers info "$c"; done | grep -o 'netns/cni-[0-9a-f-]*' | sort -u)
for task in $(ctr tasks list -q); do ctr tasks kill -s KILL "$task" & done
wait
stop TERM apiserver etcd
stop TERM containerd
for _ in $(seq 50); do
  left=
  for name in kubelet sched kcm proxy apiserver etcd containerd; do
    kill -0 "$(cat "$RUN/$name.pid" 2>/dev/null)" 2>/dev/null && left=1
  done
  [ -n "$left" ] || break
  sleep 0.1
done
stop KILL kubelet sched kcm proxy apiserver etcd containerd
[ ! -x "$RUN/no-services.sh" ] || "$RUN/no-services.sh" 2>/dev/null
# what the containers were run by: its command lines name the socket or STATE
for shim in $(ps -eo pid,args | awk -v s="$RUN/" 'index($0, s) && /containerd-shim/ && !/awk/ {print $1}'); do kill -9 "$shim" 2>/dev/null; done
for mount in $(awk -v c="$C/" 'index($2, c) == 1 {print $2}' /proc/self/mounts | sort -r); do umount -l "$mount"; done
for network in $networks; do ip netns delete "${network#netns/}" 2>/dev/null; done
ip link delete farm0 2>/dev/null
ip addr delete 10.99.0.1/32 dev lo 2>/dev/null
for _ in 1 2 3; do # a group empties a moment after its last process has ended
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null && break
  sleep 0.5
done
rm -rf "$C"
