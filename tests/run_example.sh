#!/bin/sh
# run_example.sh ANSWER_FILE PROGRAM ARGUMENT…: the program must succeed and print the answer.
set -eu
answer=$(cat "$1")
shift
output=$("$@")
printf '%s\n' "$output"
case $output in
*"$answer"*) ;;
*)
  echo "the answer is not $answer" >&2
  exit 1
  ;;
esac
