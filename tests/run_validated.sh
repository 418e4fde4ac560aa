#!/bin/sh
# run_validated.sh PROGRAM ARGUMENT…: the program must succeed under the validation layer, which it need not know of, and
# the layer must find nothing. Exit status 77: there is no such layer. LAPROX_TEST_VALIDATION=0: without it.
set -eu
if [ "${LAPROX_TEST_VALIDATION:-1}" != 0 ]; then
  export VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LAYER_VALIDATE_SYNC=1 \
    VK_LAYER_ENABLES=VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
fi
status=0
output=$("$@" 2>&1) || status=$?
printf '%s\n' "$output"
case $output in
*'Validation Error'* | *'Validation Warning'*) exit 1 ;;
*'failed: vkCreateInstance'*) exit 77 ;;
esac
exit $status
