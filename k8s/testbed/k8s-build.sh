#!/usr/bin/env bash
# Kubernetes v1.20.2's server binaries, from Debian's source package with Debian's Go: no registry has them here. Made once (minutes)
# and kept outside the clone; made again when they are missing or when this recipe changed. One that was interrupted goes on.
# usage: k8s-build.sh     root, Debian bookworm; prints the folder of the binaries
set -euo pipefail
. "$(dirname "$0")/cached.sh" kubernetes kubelet
{
# recipe
packages="dpkg-dev golang-1.19-go golang-github-modern-go-reflect2-dev golang-github-json-iterator-go-dev"
dpkg -s $packages >/dev/null 2>&1 || {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
}
# a source list of our own: the machine's apt configuration stays as it is
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | grep -v security | head -n 1 || true)
[ -n "$mirror" ] || { echo "no Debian bookworm among apt's lists: run apt-get update" >&2; exit 1; }
mkdir -p "$W/lists/partial" "$W/bin"
echo "deb-src $mirror bookworm main" >"$W/src.list"
private=(-o "Dir::Etc::SourceList=$W/src.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$W/lists" -o APT::Sandbox::User=root)
apt-get "${private[@]}" update -qq
(cd "$W" && apt-get "${private[@]}" source -qq --only-source kubernetes)

export GOROOT=/usr/lib/go-1.19 GOPATH=$W/gopath GOCACHE=$CACHE/go GO111MODULE=off CGO_ENABLED=0 GOFLAGS= PATH=/usr/lib/go-1.19/bin:$PATH
S=$GOPATH/src/k8s.io/kubernetes
mkdir -p "$(dirname "$S")"
mv "$W"/kubernetes-1.20.*/ "$S"
cd "$S"
# two libraries of the source are older than Go 1.18 allows: Debian's own packages of them are not
for module in modern-go/reflect2 json-iterator/go; do
  rm -rf "vendor/github.com/$module"
  cp -rL "/usr/share/gocode/src/github.com/$module" "vendor/github.com/$module"
done
# the one generated file that the source package lacks
go build -o "$W/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
inputs=$(grep -rl '+k8s:openapi-gen=' --include='*.go' vendor/k8s.io/*/ pkg staging/src |
  grep -vE 'code-generator|sample-apiserver|zz_generated|_examples|kube-openapi|apiserver/pkg/apis/example' |
  sed 's#^staging/src/#vendor/#' | xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
"$W/openapi-gen" --logtostderr -i "$inputs" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$W/violations.txt"
flags="-s -w"
for package in component-base/version client-go/pkg/version; do
  for value in gitMajor=1 gitMinor=20 gitVersion=v1.20.2 gitTreeState=clean gitCommit=debian buildDate=2021-01-13T00:00:00Z; do
    flags="$flags -X k8s.io/kubernetes/vendor/k8s.io/$package.$value"
  done
done
# without the clouds' and Docker's own parts: the node's containers are containerd's
go build -tags "providerless dockerless" -trimpath -ldflags "$flags" -o "$W/bin/" \
  ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler ./cmd/kubelet ./cmd/kube-proxy
# end of recipe
} >&2
rm -rf "$CACHE"/kubernetes-* "$CACHE/go"
mv -T "$W/bin" "$OUT"
chmod 755 "$OUT"
echo "$OUT"
