#!/usr/bin/env bash
# A private Docker engine on STATE/docker.sock, beside any other engine of this machine: no bridge, no firewall rules, nothing
# outside STATE. Where gVisor's runsc is installed it is a runtime of the engine. Stop it with docker-down.sh STATE.
# usage: docker-up.sh STATE      prints the line that points a client to it. Root, Linux.
#
# STATE must not have "envfarm" in its path: a container sees the engine's paths in /proc/self/mountinfo, and a test looks there.
set -euo pipefail
D=${1:?usage: docker-up.sh STATE}
H=unix://$D/docker.sock
mkdir -p "$D"
chmod 711 "$D"
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
for program in dockerd mmdebstrap iptables; do
  command -v $program >/dev/null && continue
  apt-get update -qq
  install docker.io mmdebstrap iptables
  break
done
command -v runsc >/dev/null || install runsc 2>/dev/null || echo "gVisor (runsc) cannot be installed here: its tests are skipped" >&2

if docker -H "$H" version >/dev/null 2>&1; then
  echo "already up" >&2
else
  runtimes=()
  if command -v runsc >/dev/null; then
    runsc=$("$(dirname "$0")/gvisor-build.sh") || runsc=$(command -v runsc)
    # ptrace works everywhere, kvm does not; the control groups of a container's limits are not runsc's to write here
    printf '#!/bin/sh\nexec %s --platform=ptrace --network=none --ignore-cgroups "$@"\n' "$runsc" >"$D/runsc"
    chmod 755 "$D/runsc"
    runtimes=(--add-runtime "runsc=$D/runsc")
  fi
  rm -f "$D/dockerd.pid" "$D/exec/containerd/containerd.pid" # of an engine that was killed
  setsid nohup dockerd --data-root "$D/data" --exec-root "$D/exec" -H "$H" --pidfile "$D/dockerd.pid" \
    --bridge=none --iptables=false --ip-forward=false --ip-masq=false "${runtimes[@]}" \
    >"$D/dockerd.log" 2>&1 </dev/null &
  started=$!
  for _ in $(seq 600); do
    docker -H "$H" version >/dev/null 2>&1 && break
    kill -0 $started 2>/dev/null || { echo "dockerd ended:" >&2; tail -n 20 "$D/dockerd.log" >&2; exit 1; }
    sleep 0.1
  done
fi
docker -H "$H" info --format 'Docker {{.ServerVersion}}, {{.Driver}}, cgroup v{{.CgroupVersion}}' >&2
echo "export DOCKER_HOST=$H"
