#!/usr/bin/env bash
# Installs the Debian packages that building and testing need. Does nothing, and needs no network, when all are there.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache mold git ca-certificates pkg-config
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev
  libabsl-dev libdnnl-dev librandom123-dev libpcre2-dev libutf8proc-dev nlohmann-json3-dev libssl-dev
  libboost-context-dev libopenmpi-dev openmpi-bin iproute2
  libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev
  python3 python3-pip unzip xz-utils
)
# Only ./run lint and ./run format need these.
lint_packages=(clang-format clang-tidy)
[ "${1:-}" = lint ] && packages+=("${lint_packages[@]}")
# Texts for mixtures of experts (docs/upcycling.md): /usr/share/games/fortunes to fit routers on, and
# /usr/share/doc/debian/FAQ/debian-faq.en.txt.gz to measure perplexity on.
moe_packages=(fortunes-min fortunes debian-faq)
[ "${1:-}" = moe ] && packages+=("${moe_packages[@]}")

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all packages are installed"
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "setup: apt-get not found. Verbatim's scripts support Debian 12; on other systems install the equivalents of:" >&2
  echo "  ${missing[*]}" >&2
  exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "setup: installing packages needs root or sudo: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { "${sudo[@]}" apt-get update && "${sudo[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "setup: apt-get failed (whole log: $log). Check the network connection and /etc/apt/sources.list, then run this again." >&2
  exit 1
fi
rm -f "$log"
echo "setup: done"
