#!/bin/sh
# test.sh: installs what the tests need, builds, and runs every test. Arguments go to `meson test`.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tools/prepare.sh"

need_for_building
need_for_testing
# .ci/run compiles with clang and checks style too.
[ -z "${LAPROX_CHECKS:-}" ] || need_for_checking
install_missing
build true
meson test -C "$root/build" --no-rebuild --print-errorlogs "$@" || die "tests failed"
