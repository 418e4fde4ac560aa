#!/usr/bin/env bash
# wine.sh: cross-builds for Windows and runs a few tests under Wine, which hands Vulkan to this machine's own driver.
# Needs Wine and Xvfb: without a display Wine has no Vulkan instances. Exit status 77: not to be had here.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=${LAPROX_MATRIX_OUT:-$root/build-matrix}
# Debian's wine64 by itself has no command in the path.
wine=$(command -v wine64 || command -v wine || command -v /usr/lib/wine/wine64) && command -v Xvfb >/dev/null || exit 77
"$root/tools/cross.sh" mingw "$out/build-mingw" >"$out/build-mingw.log" 2>&1 || exit $?

export WINEPREFIX=$out/wine WINEDEBUG=-all DISPLAY=:97 LAPROX_TEST_DATA=$root/tests/data \
  LAPROX_TEST_VALIDATION=0 # Wine has no layers
Xvfb $DISPLAY -screen 0 320x200x24 -nolisten tcp >/dev/null 2>&1 &
display=$!
trap 'kill $display' EXIT
sleep 1
"$wine" "$out/build-mingw/tools/laprox.exe" devices | tr -d '\r' | sed -n '1s/^0 */device: /p; 2s/^ *driver /driver: /p'
passed=0 failed=()
for name in test_half test_policy test_safetensors test_selftest test_variants test_kernels; do
  if timeout 1200 "$wine" "$out/build-mingw/tests/$name.exe" >>"$out/wine-tests.log" 2>&1; then
    passed=$((passed + 1))
  else
    failed+=("$name")
  fi
done
if [ ${#failed[@]} != 0 ]; then
  echo "failed under Wine: ${failed[*]}" >&2
  exit 1
fi
echo "$passed test programs"
