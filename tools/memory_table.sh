#!/bin/sh
# memory_table.sh [--deep] [--build DIR] [LENGTH…]: from a built tree, reads prompts of 4096 … 32768 tokens and prints
# what their KV cache takes, full and with a budget of 5 %: evicted at the end, after every layer, and in chunks. The
# model is the shipped one with its context limit raised; --deep: random weights, 32 layers. LAPROX_DEVICE chooses the
# device. A software one on two cores takes half a minute for 4096 and half an hour for all of it; with --deep hours.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tools/prepare.sh"

build=$root/build deep=false
while [ $# -gt 0 ]; do
  case $1 in
    --deep) deep=true ;;
    --build) [ $# -gt 1 ] || die "--build needs a folder"; build=$2; shift ;;
    -*) die "unknown option $1" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || set -- 4096 8192 16384 32768
laprox=$build/tools/laprox make_model=$build/tests/make_model
need_built "$laprox" "$make_model"

# All ids stand in one argument, of which Linux allows 128 KiB.
longest=$(longest_of 1000 40000 "$@")

work=$(mktemp -d) || die "no temporary folder can be made"
trap 'rm -rf "$work"' EXIT
model=$work/model.gguf
if $deep; then
  "$make_model" random "$model" 32 4 2 32 64 64 258 $((longest + 64)) || die "no model could be made"
else
  "$make_model" change "$root/tests/data/model-f16.gguf" "$model" llama.context_length $((longest + 64)) ||
    die "no model could be made"
fi

# Any tokens do: two digits each, below both vocabularies' size.
ids() {
  awk -v n="$1" 'BEGIN {
    state = 1
    for (i = 0; i < n; i++) {
      state = (state * 16807) % 2147483647
      printf "%s%d", i ? "," : "", 10 + int(state / 1024) % 90
    }
  }'
}

# numbers LENGTH OPTION…: full, kept and peak bytes of K and V, peak and planned bytes of all memory, device
numbers() {
  tokens=$(ids "$1")
  shift
  "$laprox" run "$model" --ids "$tokens" -n 1 --budget 5% --json "$@" 2>"$work/errors" >"$work/result" ||
    die "$(tail -n 1 "$work/errors")"
  awk '
    function number(object, key,   s) {
      if (!match($0, "\"" object "\": \\{[^}]*\\}")) return 0
      s = substr($0, RSTART, RLENGTH)
      if (!match(s, "\"" key "\": [0-9]+")) return 0
      return substr(s, RSTART + length(key) + 4, RLENGTH - length(key) - 4)
    }
    {
      match($0, "\"device\": \"[^\"]*\"")
      device = substr($0, RSTART + 11, RLENGTH - 12)
      print number("kv_bytes", "full"), number("kv_bytes", "kept"), number("kv_bytes", "peak"),
        number("memory_bytes", "peak"), number("memory_bytes", "planned"), device
    }' "$work/result"
}

# Peak and steady MiB, and the peak's share of the full cache.
cells() {
  echo "$1" | awk '{ printf " %.2f (%.1f %%) | %.2f |", $3 / 1048576, 100 * $3 / $1, $2 / 1048576 }'
}

echo "KV cache in MiB, budget 5 %: at the peak (of the full cache), and after the prompt"
echo
echo "| tokens | full | at the end: peak | after | layer by layer: peak | after | chunks of 1024: peak | after | all memory | planned |"
echo "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
for length; do
  at_end=$(numbers "$length" --prefill oneshot)
  by_layer=$(numbers "$length" --prefill layerwise)
  in_chunks=$(numbers "$length" --chunk-evict 1024)
  printf '| %d |%s%s%s%s%s\n' "$length" "$(echo "$at_end" | awk '{ printf " %.2f |", $1 / 1048576 }')" \
    "$(cells "$at_end")" "$(cells "$by_layer")" "$(cells "$in_chunks")" \
    "$(echo "$by_layer" | awk '{ printf " %.2f | %.2f |", $4 / 1048576, $5 / 1048576 }')"
done
echo
echo "All memory: everything on the device, layer by layer, measured at the peak and planned before."
echo "Device: $(echo "$by_layer" | cut -d' ' -f6-)"
