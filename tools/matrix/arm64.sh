#!/usr/bin/env bash
# arm64.sh build: cross-builds program, tests and pipelines for 64-bit Arm Linux, against unpacked Debian packages.
# arm64.sh run TREE ICD PROGRAM ARGUMENT…: runs one under emulation with a tree's libc, loader and driver.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/tools/matrix
cache=${LAPROX_MATRIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/laprox-matrix}
out=${LAPROX_MATRIX_OUT:-$root/build-matrix}
. "$here/rigs.sh"
tools=$cache/cross/root/usr
PATH=$PATH:$tools/bin
libs=$(echo "$tools"/lib/*-linux-gnu)
[ ! -d "$libs" ] || export LD_LIBRARY_PATH=$libs

case $1 in
build)
  fetch cross host - gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static || exit 1
  fetch bookworm-arm64 bookworm arm64 libjansson4 libpcre2-8-0 libcmocka0 libc6 libvulkan1 libjansson-dev \
    libpcre2-dev libcmocka-dev libvulkan-dev libvulkan-volk-dev || exit 1
  tree=$cache/bookworm-arm64/root
  {
    echo '[properties]'
    echo "sys_root = '$tree'"
    echo "pkg_config_libdir = ['$tree/usr/lib/aarch64-linux-gnu/pkgconfig', '$tree/usr/share/pkgconfig']"
    echo '[built-in options]'
    echo "c_args = ['--sysroot=$tree']"
    echo "c_link_args = ['--sysroot=$tree']"
  } >"$out/arm64.ini"
  native=()
  [ ! -e "$out/native.ini" ] || native=(--native-file "$out/native.ini")
  build arm64 --cross-file "$root/tools/cross/arm64.ini" --cross-file "$out/arm64.ini" "${native[@]}"
  ;;
run)
  tree=$2 driver=$3 program=$4
  shift 4
  libs=$(tree_libraries "$tree" aarch64)
  icd=$out/icd/$driver-$tree.json
  write_icd "$icd" "$(icd_library "$libs" "$driver")"
  unset LD_LIBRARY_PATH
  VK_ICD_FILENAMES=$icd VK_LAYER_PATH=$cache/$tree/root/usr/share/vulkan/explicit_layer.d \
    qemu-aarch64-static -L "$cache/$tree/root" "$out/build-arm64/$program" "$@"
  ;;
esac
