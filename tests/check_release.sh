#!/bin/sh
# check_release.sh SOURCE BUILD CC…: makes a release tarball, hides glslang, builds from the tarball alone and evicts.
set -eu
source=$1 build=$2
shift 2
[ -e "$source/.git" ] || { echo "check_release: skipped: no git checkout"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
words=$scratch/words
fail() {
  cat "$words" >&2
  echo "check_release: $*" >&2
  exit 1
}
LAPROX_PARTIAL_RELEASE=1 meson dist -C "$build" --formats gztar --no-tests --allow-dirty >"$words" 2>&1 || fail "meson dist"
mkdir "$scratch/tree" "$scratch/programs"
tar -xzf "$build"/meson-dist/laprox-*.tar.gz -C "$scratch/tree" --strip-components 1
rm -f "$build"/meson-dist/laprox-*.tar.gz*

echo "$PATH" | tr : '\n' | while read -r folder; do
  for program in "$folder"/*; do
    case ${program##*/} in glslang*) continue ;; esac
    [ -x "$program" ] && [ ! -e "$scratch/programs/${program##*/}" ] && ln -s "$program" "$scratch/programs/" 2>/dev/null || :
  done
done
PATH=$scratch/programs
! command -v glslangValidator >/dev/null || fail "glslang is still there"
CC=$* meson setup "$scratch/build" "$scratch/tree" -Dtests=false >"$words" 2>&1 || fail "configuring"
ninja -C "$scratch/build" >"$words" 2>&1 || fail "building"
"$scratch/build/tools/laprox" --version
"$scratch/build/tools/examples/embed" | tail -n 1
