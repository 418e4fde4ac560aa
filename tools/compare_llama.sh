#!/usr/bin/env bash
# compare_llama.sh [--build DIR] [--json] [--big] [--rounds N] [LENGTH…]: from a built tree, laprox and llama.cpp's Vulkan
# backend side by side: the same model file on the same software driver (lavapipe), in turns. Prefill of LENGTH tokens
# (64, 512 and 2048 unless given; 8192 takes a quarter of an hour on two cores) and decoding after them, as one table of
# ratios. --big: random weights in the geometry of a 1.1 B model (2.2 GB in the cache) instead of the shipped one.
#
# Driver and llama.cpp are packages of Debian sid, unpacked without root as tools/matrix.sh does, into its cache.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/tools/matrix
. "$root/tools/prepare.sh"
export LAPROX_MATRIX_CACHE=${LAPROX_MATRIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/laprox-matrix}
cache=$LAPROX_MATRIX_CACHE tree=llama-bench-amd64
build=$root/build big=false json= rounds=2
while [ $# -gt 0 ]; do
  case $1 in
  --build) [ $# -gt 1 ] || die "--build needs a folder"; build=$2; shift ;;
  --rounds) [ $# -gt 1 ] || die "--rounds needs a number"; rounds=$2; shift ;;
  --big) big=true ;;
  --json) json=--json ;;
  -*) die "unknown option $1" ;;
  *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || set -- 64 512 2048
longest=$(longest_of 64 32768 "$@")
build=$(cd "$build" 2>/dev/null && pwd) || die "no folder $build"
laprox=$build/tools/laprox make_model=$build/tests/make_model
need_built "$laprox" "$make_model"

out=$(mktemp -d) || die "no temporary folder can be made"
trap 'rm -rf "$out"' EXIT
mkdir "$out/icd"
. "$here/rigs.sh"
fetch $tree sid amd64 libjansson4 libpcre2-8-0 libc6 libvulkan1 mesa-vulkan-drivers llama.cpp libggml0-backend-vulkan ||
  die "llama.cpp can't be had here"

model=$out/model.gguf
if $big; then
  model=$cache/random-1.1b-32768.gguf
  [ -s "$model" ] || { "$make_model" random "$model.new" 22 32 4 64 2048 5632 32000 33000 && mv "$model.new" "$model"; } ||
    die "no model could be made"
else
  "$make_model" change "$root/tests/data/model-f16.gguf" "$model" llama.context_length $((longest + 64)) ||
    die "no model could be made"
fi

# llama.cpp looks for its backends where it is started, and passes software devices over unless they are named.
export GGML_VK_VISIBLE_DEVICES=0 VK_LOADER_LAYERS_DISABLE='~implicit~'
unset LAPROX_DEVICE LAPROX_VARIANTS
export -f in_tree tree_libraries write_icd icd_library
export out cache
libs=$(tree_libraries $tree x86_64)
versions="$(sed -n 's/^mesa-vulkan-drivers /Mesa /p; s/^llama.cpp /llama.cpp /p' "$cache/$tree/versions" | paste -sd, -)"
cd "$libs"/ggml/backends*
python3 "$root/tools/compare_llama.py" $json --rounds "$rounds" --versions "$versions" --model "$model" \
  --laprox "$laprox" --llama "$cache/$tree/root/usr/bin/llama-bench" --tree $tree "$@"
