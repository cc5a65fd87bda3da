#!/bin/bash
set -e
cmp -s "$(dirname "$0")/parts/seal.bin" /work/seal.bin
find . -type f -exec sh /solution/parts/append.sh {} \;
