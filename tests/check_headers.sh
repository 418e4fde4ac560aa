#!/bin/sh
# check_headers.sh INCLUDE_FOLDER CC CXX [FLAG…]: every public header compiles alone, in every language it may meet.
# CXX is empty where there is no C++ compiler.
set -u
include=$1 cc=$2 cxx=$3
shift 3
status=0
for header in "$include"/laprox/*.h; do
  name=laprox/$(basename "$header")
  for standard in c99 c11 c17; do
    # twice, because include guards are part of it
    printf '#include <%s>\n#include <%s>\ntypedef int not_empty;\n' "$name" "$name" |
      $cc -std=$standard -x c -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Wstrict-prototypes -Werror \
        -fsyntax-only -I"$include" "$@" - || { echo "$name: not $standard" >&2; status=1; }
  done
  [ -n "$cxx" ] || continue
  for standard in c++11 c++17; do
    # a function that is used shows that it is declared with C linkage
    printf '#include <%s>\n#include <%s>\nextern "C" const char *laprox_result_string(laprox_result);\n' "$name" "$name" |
      $cxx -std=$standard -x c++ -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror \
        -fsyntax-only -I"$include" "$@" - || { echo "$name: not $standard" >&2; status=1; }
  done
done
[ $status -ne 0 ] || echo "all headers compile alone"
exit $status
