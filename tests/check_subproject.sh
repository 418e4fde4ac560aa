#!/bin/sh
# check_subproject.sh SOURCE CONSUMER CC…: the consumer with laprox as its sub-project.
set -eu
source=$1 consumer=$2
shift 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -R "$consumer" "$scratch/consumer"
mkdir "$scratch/consumer/subprojects"
ln -s "$source" "$scratch/consumer/subprojects/laprox"
CC=$* meson setup "$scratch/build" "$scratch/consumer" --wrap-mode forcefallback >"$scratch/words" 2>&1 ||
  { cat "$scratch/words" >&2; exit 1; }
ninja -C "$scratch/build" core runtime >"$scratch/words" 2>&1 || { cat "$scratch/words" >&2; exit 1; }
"$scratch/build/core"
"$scratch/build/runtime"
