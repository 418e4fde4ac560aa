#!/bin/sh
# gpu_check.sh [BUILD [OUT]]: from a built tree, runs every test on the default (or LAPROX_DEVICE's) Vulkan device with the
# baseline kernels and with all it takes, then the benchmark, then the comparison with PyTorch where it is installed, and
# prints one table of ratios. Needs the build, the drivers and python3; for machines with a GPU. OUT is a folder that keeps
# the benchmark's and PyTorch's results.
set -u
top=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$top/build}
[ -x "$build/tools/laprox" ] || { echo "gpu_check.sh: no program at $build/tools/laprox" >&2; exit 1; }
export LAPROX_TEST_DATA="${LAPROX_TEST_DATA:-$top/tests/data}"
exec python3 "$top/tools/gpu_check.py" "$build" ${2+"$2"}
