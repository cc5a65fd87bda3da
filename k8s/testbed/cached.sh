# Sourced by what builds binaries once and keeps them outside the clone: made again when they are missing, or when what stands between
# the script's lines "# recipe" and "# end of recipe" changed. Sets CACHE, OUT (where they go) and W (a folder to build in, removed at
# the end); where they are there already it prints OUT and ends the script. Two at a time wait for each other.
# usage: . cached.sh NAME [FILE]      FILE: below OUT, there when all is; without it OUT is itself a file
CACHE=${ENVFARM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/envfarm}/testbed
OUT=$CACHE/$1-$(sed -n '/^# recipe$/,/^# end of recipe$/p' "$0" | sha256sum | cut -c1-12)
there() { [ -x "$OUT${2:+/$2}" ] && echo "$OUT"; }
if there "$@"; then exit; fi
mkdir -p "$CACHE"
exec 9>"$CACHE/$1.lock"
flock 9
if there "$@"; then exit; fi
W=$(mktemp -d "$CACHE/building.XXXXXX")
trap 'chmod -R u+w "$W"; rm -rf "$W"' EXIT
