#!/usr/bin/env bash
# gVisor's runsc from Debian's sources with one flag more: its statx refuses AT_NO_AUTOMOUNT, which `ls` and `stat` of Debian 12
# always set, so that no command could look at a file. Made once (a minute or two) and kept outside the clone; made again when it is
# missing or when this recipe changed.
# usage: gvisor-build.sh     root, Debian bookworm with runsc installed; prints the path of the binary
set -euo pipefail
. "$(dirname "$0")/cached.sh" runsc
{
# recipe
packages="golang-1.19-go golang-gvisor-gvisor-dev"
dpkg -s $packages >/dev/null 2>&1 || {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
}
S=$W/go/src/gvisor.dev/gvisor
mkdir -p "$(dirname "$S")"
cp -rL /usr/share/gocode/src/gvisor.dev/gvisor "$S"
calls=$S/pkg/sentry/syscalls/linux/sys_stat.go
sed -i 's/linux.AT_SYMLINK_NOFOLLOW|linux.AT_STATX_SYNC_TYPE) != 0/linux.AT_SYMLINK_NOFOLLOW|linux.AT_STATX_SYNC_TYPE|0x800) != 0/' "$calls"
grep -q '|0x800) != 0' "$calls" || { echo "gVisor's statx is another one: this recipe is of 20221219" >&2; exit 1; }
# the package of the sources lacks what is no Go: the library of the clock, which the installed runsc has in it
python3 - "$(command -v runsc)" "$S/pkg/sentry/loader/vdsodata/vdso.so" <<'PYTHON'
import struct, sys
binary, at = open(sys.argv[1], "rb").read(), 4
while (at := binary.find(b"\x7fELF\x02\x01\x01", at)) > 0:
    sections, = struct.unpack_from("<Q", binary, at + 0x28)
    size, count = struct.unpack_from("<HH", binary, at + 0x3A)
    found = binary[at : at + sections + size * count]
    if b"linux-vdso.so.1" in found and len(found) < 1 << 20:
        open(sys.argv[2], "wb").write(found)
        sys.exit()
    at += 4
sys.exit("no vdso.so in the installed runsc")
PYTHON
env GOROOT=/usr/lib/go-1.19 GOPATH="$W/go:/usr/share/gocode" GOCACHE="$W/cache" GO111MODULE=off CGO_ENABLED=0 GOFLAGS= \
  /usr/lib/go-1.19/bin/go build -trimpath -ldflags "-s -w -X main.version=20221219-statx" -o "$W/runsc" gvisor.dev/gvisor/runsc
# end of recipe
} >&2
rm -f "$CACHE"/runsc-*
mv "$W/runsc" "$OUT"
echo "$OUT"
