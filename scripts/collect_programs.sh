#!/usr/bin/env bash
# Copies programs, stripped, and the shared libraries that they need beyond glibc into one folder, so that they run on another
# x86-64 Linux with as new a glibc.
#
# usage: scripts/collect_programs.sh FOLDER PROGRAM…     (makes FOLDER/bin and FOLDER/lib)
#
# Programs find the libraries with LD_LIBRARY_PATH=FOLDER/lib.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2; }
folder=$1
shift
mkdir -p "$folder/bin" "$folder/lib"
for program in "$@"; do
  strip -o "$folder/bin/$(basename "$program")" "$program"
  ldd "$program"
done | awk '$3 ~ /^\// {print $3}' | sort -u |
  { grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so' || true; } |
  while read -r library; do strip -o "$folder/lib/$(basename "$library")" "$library"; done
for program in "$folder"/bin/*; do
  if LD_LIBRARY_PATH="$folder/lib" ldd "$program" | grep 'not found' >&2; then
    echo "collect_programs: $program lacks a library" >&2
    exit 1
  fi
done
