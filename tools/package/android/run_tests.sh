#!/system/bin/sh
# run_tests.sh [TEST…]: runs the pushed tests, or the named ones, on the phone.
here=$(cd "$(dirname "$0")" && pwd)
export LAPROX_TEST_DATA="$here/data" LAPROX_PROGRAM="$here/laprox" LD_LIBRARY_PATH="$here"
mkdir -p "$here/scratch" && cd "$here/scratch" || exit 1
chmod 755 "$here/laprox" "$here/embed" "$here"/tests/*
[ $# -gt 0 ] || set -- $(ls "$here/tests")
failed=0
for name; do
  if "$here/tests/$name" >"$name.log" 2>&1; then
    echo "passed  $name"
  else
    status=$?
    if [ $status -eq 77 ]; then
      echo "skipped $name"
    else
      echo "FAILED  $name ($status)"
      tail -n 20 "$name.log"
      failed=$((failed + 1))
    fi
  fi
done
echo "$failed failed"
[ $failed -eq 0 ]
