#!/usr/bin/env bash
# The base images, from Debian packages, as there is no registry: envfarm/base (a shell and its tools) and envfarm/python (the
# same with Python). Made once and kept outside the clone; later calls only load what the engine does not have yet.
# The same images, unpacked, are in OUT/root: with ENVFARM_IMAGES=OUT/root bubblewrap's boxes have them as their root as well.
# usage: DOCKER_HOST=... base-image.sh     root; prints OUT, which also holds them as tars
set -euo pipefail
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/envfarm/testbed
SUITE=bookworm
KEY=$(sed -n '/^# recipe$/,/^# end of recipe$/p' "$0" | sha256sum | cut -c1-12)
OUT=$CACHE/images-$KEY
# recipe
export SOURCE_DATE_EPOCH=1700000000 # equal inputs, equal bytes

if ! [ -d "$OUT/root" ]; then
  mkdir -p "$CACHE"
  W=$(mktemp -d "$CACHE/making.XXXXXX")
  trap 'rm -rf "$W"' EXIT
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $SUITE" | grep -v security | head -n 1 || true)
  cat >"$W/agent.sh" <<'HOOK'
set -e
printf 'agent:x:1000:1000:agent:/task:/bin/sh\n' >>"$1/etc/passwd"
printf 'agent:x:1000:\n' >>"$1/etc/group"
echo box >"$1/etc/hostname"
printf '127.0.0.1 localhost box\n::1 localhost\n' >"$1/etc/hosts"
mkdir -p "$1/task" "$1/run/in"
find "$1" -xdev -type f -perm /6000 -exec chmod a-s {} +
HOOK
  # one installation gives both: base.tar is written on the way, before Python comes
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,procps \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="sh $W/agent.sh \"\$1\"" \
    --customize-hook="tar -C \"\$1\" --sort=name --mtime=@$SOURCE_DATE_EPOCH --exclude=./dev --exclude=./proc --exclude=./sys --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./tmp/*' -cf \"$W/base.tar\" ." \
    --customize-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq -y --no-install-recommends -o DPkg::Chroot-Directory="$1" install python3 >/dev/null' \
    --customize-hook='ln -s python3 "$1/usr/bin/python"; find "$1/usr/lib/python3" -name "*.pyc" -delete' \
    "$SUITE" "$W/python.tar" ${mirror:+"$mirror"}
  rm "$W/agent.sh"
  for name in base python; do
    mkdir -p "$W/unpacking/envfarm/$name"
    tar -C "$W/unpacking/envfarm/$name" -xpf "$W/$name.tar"
  done
  mv "$W/unpacking" "$W/root"
  chmod 755 "$W"
  rm -rf "$OUT" "$CACHE"/images-*
  mv "$W" "$OUT"
  trap - EXIT
fi
# end of recipe
for name in base python; do
  found=$(docker image inspect --format '{{index .Config.Labels "envfarm.image.key"}}' "envfarm/$name" 2>/dev/null || true)
  [ "$found" = "$KEY" ] || docker import -c "LABEL envfarm.image.key=$KEY" -c 'CMD ["/bin/sh"]' "$OUT/$name.tar" "envfarm/$name" >/dev/null
done
docker image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' 'envfarm/*' >&2
echo "$OUT"
