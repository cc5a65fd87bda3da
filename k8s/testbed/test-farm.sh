#!/usr/bin/env bash
# What `make test-farm` does: a real engine from nothing, the tests that need one, and everything down again.
# usage: test-farm.sh PYTHON [pytest arguments]     skipped, with the reason, without root or Linux
set -euo pipefail
PYTHON=${1:?usage: test-farm.sh PYTHON [pytest arguments]}
shift
HERE=$(cd "$(dirname "$0")" && pwd)
cd "$HERE/../.."
skip() { echo "test-farm skipped: $*"; exit 0; }
[ "$(uname)" = Linux ] || skip "the test bed needs Linux, this is $(uname)"
[ "$(id -u)" = 0 ] || skip "the test bed starts an engine of its own, which needs root"
command -v dockerd >/dev/null || command -v apt-get >/dev/null || skip "dockerd is not installed, and there is no apt-get to install it with"

STATE=$(mktemp -d /tmp/farm.XXXXXX) # not below the clone: see docker-up.sh
trap '"$HERE/docker-down.sh" "$STATE/docker"; rm -rf "$STATE"' EXIT
time_of() { local start=$SECONDS; "${@:2}"; echo "-- $1: $((SECONDS - start)) s"; }
chmod 755 "$STATE"
time_of "Docker engine" "$HERE/docker-up.sh" "$STATE/docker"
export DOCKER_HOST=unix://$STATE/docker/docker.sock
time_of "base images" "$HERE/base-image.sh" "$(dirname "$PYTHON")/envfarm" | tee "$STATE/made"
ENVFARM_IMAGES=$(grep ^/ "$STATE/made") # the same roots for bubblewrap, where backends are compared
export ENVFARM_IMAGES
time_of "tests" "$PYTHON" -m pytest -m docker "$@"
