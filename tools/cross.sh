#!/bin/sh
# cross.sh TARGET FOLDER [MESON_OPTION…]: configures and builds laprox for another machine, with runtime and tests.
# TARGET is a file of tools/cross without ".ini". The libraries that the runtime and the tests need are built from their
# sources, once, into a cache, from Debian's archive or a mirror of it (LAPROX_MIRROR: its root, …/debian). Exit
# status 77: there is no such toolchain here, or no way to those sources.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
target=$1 folder=$2
shift 2
file=$root/tools/cross/$target.ini
cache=${XDG_CACHE_HOME:-$HOME/.cache}/laprox-cross
pool=${LAPROX_MIRROR:-https://deb.debian.org/debian}/pool/main

die() {
  echo "cross.sh $target: $*" >&2
  exit 1
}
has_program() { command -v "$1" >/dev/null 2>&1; }
[ -e "$file" ] || die "no $file"
# binary KEY: what the cross file calls it.
binary() { sed -n "s/^$1 *= *'\(.*\)'/\1/p" "$file"; }
for program in "$(binary c)" "$(binary ar)" meson ninja pkg-config cmake curl; do
  has_program "$program" || { echo "cross.sh $target: skipped: no $program"; exit 77; }
done

# fetch PATH SHA256: a source archive, in the cache under its name.
fetch() {
  archive=$cache/sources/${1##*/}
  if ! echo "$2  $archive" | sha256sum --check --status 2>/dev/null; then
    mkdir -p "$cache/sources"
    curl --fail --silent --show-error --location --output "$archive.part" "$pool/$1" ||
      { echo "cross.sh $target: skipped: can't fetch $pool/$1"; exit 77; }
    echo "$2  $archive.part" | sha256sum --check --status || die "$1 is not what it was"
    mv "$archive.part" "$archive"
  fi
}

# library PATH SHA256 CMAKE_OPTION…: builds a static library into $prefix.
library() {
  fetch "$1" "$2"
  shift 2
  work=$(mktemp -d)
  mkdir "$work/source"
  tar -xf "$archive" -C "$work/source" --strip-components=1
  case $(sed -n "s/^system *= *'\(.*\)'/\1/p" "$file") in windows) system=Windows ;; *) system=Linux ;; esac
  { cmake -S "$work/source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" \
      -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_SYSTEM_NAME=$system \
      -DCMAKE_SYSTEM_PROCESSOR="$(sed -n "s/^cpu_family *= *'\(.*\)'/\1/p" "$file")" \
      -DCMAKE_C_COMPILER="$(binary c)" -DCMAKE_AR="$(command -v "$(binary ar)")" \
      -DCMAKE_POSITION_INDEPENDENT_CODE=ON -DBUILD_SHARED_LIBS=OFF -Wno-dev "$@" &&
    ninja -C "$work/build" install; } >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; die "building $archive failed"; }
  rm -rf "$work"
}

# Vulkan's headers are the same for all machines, but may not lie among this machine's own.
headers() {
  mkdir -p "$prefix/include" "$prefix/lib/pkgconfig"
  include=$(pkg-config --variable=includedir vulkan 2>/dev/null || echo /usr/include)
  for part in vulkan vk_video volk.h volk.c; do
    [ -e "$include/$part" ] || die "no $part in $include"
    cp -R "$include/$part" "$prefix/include/"
  done
  printf 'Name: vulkan\nDescription: headers\nVersion: %s\nCflags: -I%s/include\n' \
    "$(pkg-config --modversion vulkan 2>/dev/null || echo 1.1)" "$prefix" >"$prefix/lib/pkgconfig/vulkan.pc"
}

# Another choice of libraries or versions has another name.
prefix=$cache/$target-1
if [ ! -e "$prefix/complete" ]; then
  rm -rf "$prefix"
  headers
  library j/jansson/jansson_2.14.orig.tar.gz c739578bf6b764aa0752db9a2fdadcfe921c78f1228c7ec0bb47fa804c55d17b \
    -DJANSSON_BUILD_DOCS=OFF -DJANSSON_WITHOUT_TESTS=ON -DJANSSON_EXAMPLES=OFF
  library p/pcre2/pcre2_10.42.orig.tar.gz c33b418e3b936ee3153de2c61cc638e7e4fe3156022a5c77d0711bcbb9d64f1f \
    -DPCRE2_BUILD_PCRE2GREP=OFF -DPCRE2_BUILD_TESTS=OFF
  library c/cmocka/cmocka_1.1.7.orig.tar.xz 810570eb0b8d64804331f82b29ff47c790ce9cd6b163e98d47a4807047ecad82 \
    -DWITH_EXAMPLES=OFF -DUNIT_TESTING=OFF
  # without it PCRE2's header expects a DLL
  [ "$target" != mingw ] || sed -i 's/^Cflags:.*/& -DPCRE2_STATIC/' "$prefix/lib/pkgconfig/libpcre2-8.pc"
  : >"$prefix/complete"
fi

{
  printf "[properties]\npkg_config_libdir = '%s/lib/pkgconfig'\n" "$prefix"
  case $target in
  arm64) emulator=qemu-aarch64-static sysroot=/usr/aarch64-linux-gnu ;;
  armhf) emulator=qemu-arm-static sysroot=/usr/arm-linux-gnueabihf ;;
  *) emulator= ;;
  esac
  if [ -n "$emulator" ] && has_program $emulator; then
    printf "[binaries]\nexe_wrapper = ['%s', '-L', '%s']\n" $emulator $sysroot
  fi
} >"$prefix/libraries.ini"

if [ ! -e "$folder/build.ninja" ]; then
  meson setup "$folder" "$root" --cross-file "$file" --cross-file "$prefix/libraries.ini" -Druntime=enabled "$@" \
    >"$folder.log" 2>&1 || { cat "$folder.log" >&2; die "configuring failed"; }
  rm -f "$folder.log"
fi
log=$(mktemp)
ninja -C "$folder" >"$log" 2>&1 || { grep -vE '^\[|^ninja: Enter' "$log" >&2; rm -f "$log"; die "building failed"; }
rm -f "$log"
