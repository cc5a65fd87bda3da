#!/usr/bin/env bash
# What `make test-farm` does: a real engine and a real cluster from nothing, the tests that need them, and everything down again.
# The cluster's binaries are built where they are missing (minutes, once); with --prepare, that alone is done, in the background.
# usage: test-farm.sh PYTHON [pytest arguments] | --prepare     skipped, with the reason, without root or Linux
set -euo pipefail
PYTHON=${1:?usage: test-farm.sh PYTHON [pytest arguments] | --prepare}
shift
HERE=$(cd "$(dirname "$0")" && pwd)
cd "$HERE/../.."
skip() { echo "test-farm skipped: $*"; exit 0; }
[ "$(uname)" = Linux ] || skip "the test bed needs Linux, this is $(uname)"
[ "$(id -u)" = 0 ] || skip "the test bed starts an engine of its own, which needs root"
command -v dockerd >/dev/null || command -v apt-get >/dev/null || skip "dockerd is not installed, and there is no apt-get to install it with"

no_cluster=
[ -x /usr/lib/go-1.19/bin/go ] || command -v apt-get >/dev/null || no_cluster="there is no apt-get to get Kubernetes' source with"
grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release || no_cluster=${no_cluster:-"Kubernetes is built from Debian bookworm's source package"}
if [ "$PYTHON" = --prepare ]; then
  [ -z "$no_cluster" ] || skip "$no_cluster"
  exec nice -n 19 "$HERE/k8s-build.sh"
fi

STATE=$(mktemp -d /tmp/farm.XXXXXX) # not below the clone: see docker-up.sh
down() {
  "$HERE/k8s-down.sh" "$STATE/k8s"
  "$HERE/docker-down.sh" "$STATE/docker"
  rm -rf "$STATE"
}
trap down EXIT
trap 'exit 130' INT TERM
time_of() { # NAME COMMAND...
  local start=$SECONDS code=0
  "${@:2}" || code=$?
  printf '%6d s    %s%s\n' $((SECONDS - start)) "$1" "$([ $code = 0 ] || echo ': FAILED')" | tee -a "${CI_TIMES:-/dev/null}" >&2
  return $code
}
tests() { # PROCESSES MARKERS [pytest arguments]: else all files with such tests; that there is none among them is fine
  local code=0
  [ $# -gt 2 ] || set -- "$@" $("$PYTHON" -c 'from tests.venvs import tests_of; print(*tests_of("docker", "kubernetes"))')
  "$PYTHON" -m pytest -n "$1" --dist loadgroup -m "$2" "${@:3}" || code=$? # tests of one farm in one process
  [ $code = 5 ] || return $code
}
chmod 755 "$STATE"
export ENVFARM_TESTBED=$STATE # its parts may be killed
time_of "Docker engine" "$HERE/docker-up.sh" "$STATE/docker"
export DOCKER_HOST=unix://$STATE/docker/docker.sock
time_of "base images" "$HERE/base-image.sh" "$(dirname "$PYTHON")/envfarm" | tee "$STATE/made"
ENVFARM_IMAGES=$(grep ^/ "$STATE/made") # the same roots for bubblewrap, where backends are compared
export ENVFARM_IMAGES

markers="docker and not kubernetes"
if [ -n "$no_cluster" ]; then
  echo "tests in pods skipped: $no_cluster"
else
  time_of "Kubernetes' binaries" "$HERE/k8s-build.sh" >"$STATE/binaries"
  time_of "cluster" "$HERE/k8s-up.sh" "$(cat "$STATE/binaries")" "$STATE/k8s" >"$STATE/cluster"
  KUBECONFIG=$(sed -n 's/^export KUBECONFIG=//p' "$STATE/cluster")
  export KUBECONFIG
  markers="docker or kubernetes"
fi
failed=0
time_of "tests in containers and pods" tests 4 "($markers) and not alone" "$@" || failed=$?
time_of "parts of the test bed killed" tests 0 "($markers) and alone" "$@" || failed=$?
exit $failed
