#!/bin/sh
# prebuild.sh [NEED…] -- FOLDER HEADER…: run by `meson dist`, puts the SPIR-V of every shader into the tarball. A release has all
# variants: NEED are those that this build's glslang was too old for. LAPROX_PARTIAL_RELEASE=1 accepts that, for tests.
set -eu
left_out=
while [ "$1" != -- ]; do
  left_out="$left_out $1"
  shift
done
shift
folder=$1
shift
if [ -n "$left_out" ] && [ -z "${LAPROX_PARTIAL_RELEASE:-}" ]; then
  echo "prebuild: this glslang has left out:$left_out; configure with a newer one in PATH" >&2
  exit 1
fi
! grep -q '^build spirv:' "$MESON_BUILD_ROOT/build.ninja" || ninja -C "$MESON_BUILD_ROOT" spirv
mkdir -p "$MESON_DIST_ROOT/shaders/prebuilt"
cd "$folder"
cp "$@" "$MESON_DIST_ROOT/shaders/prebuilt/"
