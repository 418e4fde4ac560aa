#!/bin/sh
# gpu_check.sh [BUILD]: from a built tree, runs every test and the needle evaluation on the default (or LAPROX_DEVICE's)
# Vulkan device and prints one table. Needs nothing but the build and the drivers; for machines with a GPU.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$top/build}
[ -x "$build/tools/laprox" ] || { echo "gpu_check.sh: no program at $build/tools/laprox" >&2; exit 1; }
build=$(cd "$build" && pwd)
export LAPROX_TEST_DATA="$top/tests/data" LAPROX_PROGRAM="$build/tools/laprox"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0

"$build/tools/laprox" devices || exit 1

for test in "$build"/tests/test_*; do
  [ -x "$test" ] && [ -f "$test" ] || continue
  name=$(basename "$test") start=$(date +%s)
  if timeout 300 "$test" >"$name.log" 2>&1; then
    passed=$((passed + 1)) verdict=ok
  else
    failed=$((failed + 1)) verdict=FAILED
  fi
  printf '%-28s %-7s %4d s\n' "$name" "$verdict" $(($(date +%s) - start))
  [ $verdict = ok ] || grep -vE '^\[ +(RUN|OK) ' "$name.log" | tail -n 25
done

for length in 512 1024 2048; do
  echo
  echo "needles, $length tokens"
  "$build/tools/laprox" eval "$top/tests/data/model-f16.gguf" --tasks "$top/tests/data/prompts/needle_$length.jsonl" \
    ${LAPROX_CHECK_LIMIT:+--limit "$LAPROX_CHECK_LIMIT"} || failed=$((failed + 1))
done

echo
"$build/tools/laprox" run "$top/tests/data/model-f16.gguf" -f "$top/tests/data/demo.txt" --budget 5% -n 12 ||
  failed=$((failed + 1))
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
