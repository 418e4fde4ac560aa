#!/bin/sh
# run_gpu_check.sh SCRIPT: the script for GPU machines in a build whose tests are two small scripts, one of which fails.
set -u
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/build/tools" "$work/build/tests"
ln -s "$LAPROX_PROGRAM" "$work/build/tools/laprox"
printf '#!/bin/sh\n[ "$LAPROX_VARIANTS" = baseline ]\n' >"$work/build/tests/test_half"
printf '#!/bin/sh\nexit 77\n' >"$work/build/tests/test_absent"
chmod +x "$work/build/tests/"*
fail() {
  echo "gpu_check.sh: $1" >&2
  cat "$work/out" >&2
  exit 1
}
sh "$1" "$work/build" "$work/kept" >"$work/out" 2>&1
[ $? -eq 1 ] || fail "a failed test is not the script's status"
grep -q '^test_half, all: FAILED' "$work/out" || fail "the failed test is not named"
grep -q '1 passed, 1 failed, 2 skipped' "$work/out" || fail "tests are miscounted"
grep -q '^eviction pass : PyTorch, plain' "$work/out" || fail "there is no table"
# Of the two figures behind a line: theirs : ours.
awk -F: '/^decode, evicted : own full, layers at once/ { split($2, w, " "); n = 0
  for (i in w) if (w[i] == "ms") n++
  exit n != 2 }' "$work/out" || fail "a line lacks figures"
[ -s "$work/kept/bench.json" ] || fail "the results were not kept"
