#!/usr/bin/env bash
# The images of boxes and of workers, by `envfarm image build`, in the engine of DOCKER_HOST, and those of boxes unpacked.
# usage: DOCKER_HOST=... base-image.sh [ENVFARM]     root; prints the folder of the unpacked ones, for ENVFARM_IMAGES
set -euo pipefail
ENVFARM=${1:-$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin/envfarm}
"$ENVFARM" image build --engine --worker | tee >(cat >&2) | sed -n 's/^unpacked in //p'
