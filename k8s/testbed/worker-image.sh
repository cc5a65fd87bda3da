#!/usr/bin/env bash
# The image of workers and keepers made anew, in the engine of DOCKER_HOST and in the cluster that k8s-up.sh started below STATE:
# after a change of the code, or with packages more.
# usage: DOCKER_HOST=... worker-image.sh STATE [ENVFARM [--install REQUIREMENT|WHEEL]...]     root
set -euo pipefail
STATE=${1:?usage: worker-image.sh STATE [ENVFARM [--install REQUIREMENT|WHEEL]...]}
ENVFARM=${2:-$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin/envfarm}
"$ENVFARM" image build --engine --worker "${@:3}" >&2
docker save envfarm/worker:latest | ctr -a "$STATE/run/containerd.sock" -n k8s.io images import - >/dev/null
