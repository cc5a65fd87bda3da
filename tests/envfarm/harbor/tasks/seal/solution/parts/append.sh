cat /work/seal.bin >> "$1"
