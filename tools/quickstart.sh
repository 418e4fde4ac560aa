#!/bin/sh
# quickstart.sh: from nothing to a question answered from a twentieth of the KV cache.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tools/prepare.sh"

need_for_building
install_missing
build false

laprox=$root/build/tools/laprox
model=$root/tests/data/model-f16.gguf
document=$root/tests/data/demo.txt
answer=$(cat "$root/tests/data/demo.answer")

# Drivers compile shaders at their first use, which says nothing about the method: not in the table.
"$laprox" run "$model" -p "$(head -c 500 "$document")" -n 2 --budget 40 >/dev/null 2>&1 || true

echo "The model is asked about one fact in a document it has just read:"
echo "  …$(grep -o "[^.]*$answer\." "$document" | head -n 1)…"
echo "  $(tail -n 1 "$document")"
echo

# The program's JSON is one line with known keys; awk takes out what the table shows.
row() {
  name=$1
  shift
  if ! result=$("$laprox" run "$model" -f "$document" -n 12 --stop . --json "$@"); then
    die "the demonstration failed (the line above says why)"
  fi
  printf '%s\n' "$result" | awk -v name="$name" -v answer="$answer" '
    function number(key) {
      if (!match($0, "\"" key "\": [0-9.eE+-]+")) return 0
      return substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) + 0
    }
    function text(key,   s) {
      if (!match($0, "\"" key "\": \"([^\"\\\\]|\\\\.)*\"")) return ""
      s = substr($0, RSTART + length(key) + 5, RLENGTH - length(key) - 6)
      gsub(/^ +| +$/, "", s)
      return s
    }
    {
      said = text("text"); full = number("full"); kept = number("kept")
      right = index(said, answer) == 1 ? "right" : "wrong"
      if (name == "full cache")
        printf "%d tokens on %s\n\n%-14s %-12s %-6s %18s %10s %9s %11s\n", number("prompt_tokens"), text("device"),
          "", "answer", "", "KV cache", "prefill", "evict", "per token"
      printf "%-14s %-12s %-6s %8.1f KiB %5.1f%% %7.0f ms %6.1f ms %8.2f ms\n", name, substr(said, 1, 12), right,
        kept / 1024, 100 * kept / full, number("prefill"), number("evict"), number("decode_per_token")
    }'
}

row "full cache"
row "laprox 5 %" --budget 5%
row "streaming 5 %" --budget 5% --policy streaming
