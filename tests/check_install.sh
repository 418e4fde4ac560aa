#!/bin/sh
# check_install.sh BUILD PREFIX LIBDIR CONSUMER CC…: installs into an empty folder, builds and runs the consumers against
# that by pkg-config, CMake and Meson, and takes everything away again.
set -eu
build=$1 prefix=$2 libdir=$3 consumer=$4
shift 4
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
stage=$scratch/stage
root=$stage$prefix
libraries=$root/$libdir
missing=
DESTDIR=$stage meson install -C "$build" --no-rebuild --quiet

has_program() { command -v "$1" >/dev/null 2>&1 || { missing="$missing $1"; return 1; }; }
# fail WORD…: what is wrong.
fail() {
  echo "check_install: $*" >&2
  exit 1
}
run() { LD_LIBRARY_PATH="$libraries" "$@"; }

for file in "$root/include/laprox/laprox.h" "$root/include/laprox/vulkan.h" "$libraries/pkgconfig/laprox.pc" \
  "$libraries/cmake/laprox/laproxConfig.cmake"; do
  [ -s "$file" ] || fail "not installed: $file"
done
[ -x "$root/bin/laprox" ] || fail "not installed: bin/laprox"
"$root/bin/laprox" --version
if ! [ -e "$root/share/man/man1/laprox.1" ]; then
  missing="$missing laprox.1"
elif command -v man >/dev/null; then
  [ -z "$(LC_ALL=C.UTF-8 man --warnings -l "$root/share/man/man1/laprox.1" 2>&1 >"$scratch/page")" ] || fail "laprox.1 has warnings"
  for option in $("$root/bin/laprox" run --help | grep -o -e ' --[a-z-]*' | sort -u); do
    grep -q -e "$option" "$scratch/page" || fail "laprox.1 lacks $option"
  done
fi
find "$stage" -name '*.h' -o -name '*.so.*.*.*' | sed "s,$stage,installed: ,"

echo "-- pkg-config, shared and static"
export PKG_CONFIG_PATH="$libraries/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$stage"
if has_program pkg-config; then
  for name in core runtime; do
    package=laprox
    [ $name = core ] || package=laprox-runtime
    # shellcheck disable=SC2046
    "$@" -o "$scratch/$name" "$consumer/$name.c" $(pkg-config --cflags --libs $package)
    run "$scratch/$name"
    flags=$(PKG_CONFIG_SYSROOT_DIR= pkg-config --static --libs $package | sed "s/-l$package/-l:lib$package.a/; s,-L$prefix,-L$root,")
    # shellcheck disable=SC2046,SC2086
    "$@" -o "$scratch/$name-static" "$consumer/$name.c" $(pkg-config --cflags $package) $flags
    "$scratch/$name-static"
  done
  # a header of another number must not find this library
  sed -i.before 's/^#define LAPROX_API_NUMBER .*/#define LAPROX_API_NUMBER 9999/' "$root/include/laprox/laprox.h"
  # shellcheck disable=SC2046
  if "$@" -o "$scratch/other" "$consumer/core.c" $(pkg-config --cflags --libs laprox) 2>"$scratch/words"; then
    fail "a program with headers of another API number links"
  fi
  grep -q laprox_context_create_9999 "$scratch/words" || { cat "$scratch/words" >&2; fail "linking failed otherwise"; }
  mv "$root/include/laprox/laprox.h.before" "$root/include/laprox/laprox.h"
fi

echo "-- CMake"
if has_program cmake; then
  CC=$* cmake -S "$consumer" -B "$scratch/cmake" -DCMAKE_PREFIX_PATH="$root" >"$scratch/words" 2>&1 &&
    cmake --build "$scratch/cmake" >>"$scratch/words" 2>&1 || { cat "$scratch/words" >&2; fail "CMake's consumer"; }
  "$scratch/cmake/core"
  "$scratch/cmake/runtime"
fi

echo "-- Meson"
if has_program pkg-config; then
  CC=$* meson setup "$scratch/meson" "$consumer" --wrap-mode nofallback >"$scratch/words" 2>&1 &&
    ninja -C "$scratch/meson" >>"$scratch/words" 2>&1 || { cat "$scratch/words" >&2; fail "Meson's consumer"; }
  run "$scratch/meson/core"
  run "$scratch/meson/runtime"
fi

echo "-- uninstall"
ninja -C "$build" uninstall >"$scratch/words" 2>&1 || { cat "$scratch/words" >&2; fail "uninstall"; }
[ ! -e "$stage" ] || fail "left behind: $(find "$stage")"
[ -z "$missing" ] || { echo "check_install: skipped for want of:$missing"; exit 77; }
