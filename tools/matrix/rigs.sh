#!/usr/bin/env bash
# rigs.sh: what matrix.sh does with a rig. Sourced; uses its variables.

# ---- trees ----

fetch() { "$here/fetch.sh" "$@"; }
has() { [ -s "$cache/$1/versions" ]; }

# A tree's libraries, by its architecture's name.
tree_libraries() { echo "$cache/$1/root/usr/lib/$2-linux-gnu"; }

# A program of a tree, to be called from outside: it needs that tree's libc.
wrap_tool() {
  local libs
  libs=$(tree_libraries "$1" x86_64)
  printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' "$libs/ld-linux-x86-64.so.2" "$libs" \
    "$cache/$1/root/usr/bin/$2" >"$cache/$1/$2"
  chmod +x "$cache/$1/$2"
}

# write_icd FILE LIBRARY: names a driver by its path, for those in packages name a place that isn't there.
# Rigs that run at once may write the same.
write_icd() {
  printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.1.0"}}\n' "$2" >"$1.$BASHPID"
  mv -f "$1.$BASHPID" "$1"
}

# icd_library FOLDER NAME: the driver that NAME_icd.*.json means, or NAME itself where it is a library.
icd_library() {
  case $2 in
  /*) echo "$2" ;;
  *.so) echo "$1/$2" ;;
  *) echo "$1/$(sed -n 's|.*"library_path": *"\([^"]*/\)\{0,1\}\([^"/]*\)".*|\2|p' \
    "$1"/../../share/vulkan/icd.d/"$2"_icd*.json | head -n 1)" ;;
  esac
}

# in_tree TREE ICD SHIM|- PROGRAM…: with that tree's libc, loader, driver and layers.
in_tree() {
  local libs icd preload=() tree=$1 driver=$2 shim=$3
  shift 3
  libs=$(tree_libraries "$tree" x86_64)
  icd=$out/icd/${driver##*/}-$tree.json
  write_icd "$icd" "$(icd_library "$libs" "$driver")"
  case $shim in
  -) ;;
  /*) preload=(--preload "$shim") ;;
  *) preload=(--preload "$libs/lib${shim}_noop_drm_shim.so") ;;
  esac
  VK_ICD_FILENAMES=$icd VK_LAYER_PATH=$cache/$tree/root/usr/share/vulkan/explicit_layer.d \
    "$libs/ld-linux-x86-64.so.2" --library-path "$libs:$libs/llama:$libs/ggml" "${preload[@]}" "$@"
}

# ---- building ----

# build NAME MESON-OPTION…: everything, in $out/build-NAME.
build() {
  local folder=$out/build-$1
  shift
  if { [ -e "$folder/build.ninja" ] || meson setup "$folder" "$root" "$@"; } >"$folder.log" 2>&1 &&
    ninja -C "$folder" >>"$folder.log" 2>&1; then
    return 0
  fi
  echo "matrix.sh: the build in $folder failed:" >&2
  grep -E 'ERROR|error:|FAILED' "$folder.log" | head -n 5 >&2
  return 1
}

# Whether a rig is asked for, by a pattern.
wanted() { [[ $1 == $only ]]; }

# rig FUNCTION ARGUMENT…: beside other rigs, in a folder of its own, for tests write files where they are started.
n_rigs=0
rig() {
  n_rigs=$((n_rigs + 1))
  while [ "$(jobs -rp | wc -l)" -ge "$(getconf _NPROCESSORS_ONLN)" ]; do wait -n; done
  (
    folder=$(printf '%s/rigs/%02d' "$out" $n_rigs)
    mkdir "$folder" && cd "$folder" && results=$folder.tsv && : >"$results" && "$@"
  ) &
}

# ---- results: kind, rig, status, device, driver, what, seconds ----

result() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$results"
  printf '%s: %s: %s: %s (%s s)\n' "$1" "$2" "$3" "$6" "$7"
}
absent() { ! wanted "$2" || result "$1" "$2" absent '' '' 'not to be had on this machine' 0; }

# The device's name, its driver and its variants, from `laprox devices --json`.
describe() {
  python3 -c '
import json, sys
try:
    d = json.load(sys.stdin)["devices"][0]
    variants = ", ".join(name for name, has in d["variants"].items() if has is True)
    print(d["name"].strip(), " ".join((d["driver"], d["driver_info"])).strip(), variants, sep="\t")
except (ValueError, LookupError):
    print("\t\t")'
}

# run_tests LOG TESTS RUNNER…: each as "name" or "name:one of its tests". Prints "passed failed names".
run_tests() {
  local log=$1 tests=$2 passed=0 failed=() name test
  shift 2
  for name in $tests; do
    test=${name#*:}
    [ "$test" != "$name" ] || test=
    echo "== $name" >>"$log"
    if timeout 1800 "$@" "${name%%:*}" $test >>"$log" 2>&1; then
      passed=$((passed + 1))
    else
      failed+=("$name")
    fi
  done
  echo "$passed ${#failed[@]} ${failed[*]}"
}

# finish KIND RIG TESTS-RESULT DESCRIPTION START
finish_execute() {
  local rig=$1 start=$4 passed failed names device driver variants what status=ok
  read -r passed failed names <<<"$2"
  IFS=$'\t' read -r device driver variants <<<"$3"
  what="$passed test programs; kernels: ${variants:-none}"
  [ "$failed" = 0 ] && [ "$variants" ] || { status=FAILED what="$what; failed: ${names:-no usable device}"; }
  result executed "$rig" $status "$device" "$driver" "$what" $((SECONDS - start))
}

# execute RIG TREE ICD TESTS VARIABLE=VALUE…
execute() {
  local rig=$1 tree=$2 driver=$3 tests=$4 start=$SECONDS log description
  wanted "$rig" || return 0
  shift 4
  log=$out/$(echo "$rig" | tr -c 'A-Za-z0-9\n' _).log
  description=$(
    [ $# = 0 ] || export "$@"
    in_tree "$tree" "$driver" - "$out/build-amd64/tools/laprox" devices --json 2>"$log" | describe
  )
  in_build() { in_tree "$tree" "$driver" - "$out/build-amd64/tests/$1" "${@:2}"; }
  export -f in_build in_tree tree_libraries write_icd icd_library
  export out cache tree driver
  finish_execute "$rig" "$(
    [ $# = 0 ] || export "$@"
    run_tests "$log" "$tests" bash -c 'in_build "$@"' in_build
  )" "$description" "$start"
}

# compile_with RIG RUNNER…: `pipelines` through the runner.
compile_with() {
  local rig=$1 start=$SECONDS json status=ok what name
  shift
  name=$(echo "$rig" | tr -c 'A-Za-z0-9\n' _)
  json=$out/$name.json
  timeout 1800 "$@" >"$json" 2>"$out/$name.log"
  if ! [ -s "$json" ]; then
    rm -f "$json"
    result compiled "$rig" FAILED '' '' "no result: $(tail -n 1 "$out/$name.log")" $((SECONDS - start))
    return
  fi
  what=$(python3 "$here/spills.py" --line "$json") || status=FAILED
  result compiled "$rig" $status "$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["device"].strip())' "$json")" \
    "$compiler" "$what" $((SECONDS - start))
}

# version_of TREE: of its Mesa.
version_of() { echo "Mesa $(sed -n 's/^mesa-vulkan-drivers //p' "$cache/$1/versions")"; }

# compile_on RIG TREE ICD SHIM VARIABLE=VALUE…
compile_on() {
  local rig=$1 tree=$2 driver=$3 shim=$4
  shift 4
  wanted "$rig" || return 0
  has "$tree" || { absent compiled "$rig"; return; }
  compiler=$(version_of "$tree")
  export -f in_tree tree_libraries write_icd icd_library
  export out cache
  compile_with "$rig" env "$@" bash -c 'in_tree "$@"' in_tree "$tree" "$driver" "$shim" "$out/build-amd64/tools/pipelines"
}

# ---- another engine ----

# execute_llama RIG TREE: the example with the tree's llama.cpp, which looks for its backends where it is started. The
# tree's C headers are not this machine's, so they come last; its libraries want a newer libc than is linked with here.
execute_llama() {
  local rig=$1 tree=$2 start=$SECONDS libs log=$out/llama.log said status=ok code
  wanted "$1" || return 0
  libs=$(tree_libraries "$tree" x86_64)
  said=$(
    cc -std=c11 -O1 -I"$root/include" -idirafter "$cache/$tree/root/usr/include" "$root"/tools/examples/{llama,app,instance,volk}.c \
      "$out/build-amd64/src/liblaprox.a" -L"$libs" -lllama -lggml -lggml-base -Wl,--allow-shlib-undefined -ldl -lm \
      -o "$out/llama" 2>"$log" && cd "$libs"/ggml/backends* &&
      in_tree "$tree" lvp - "$out/llama" "$LAPROX_TEST_DATA/model-f16.gguf" "$LAPROX_TEST_DATA/demo.txt" 2>>"$log"
  )
  code=$?
  case $said in
  *"$(cat "$LAPROX_TEST_DATA/demo.answer")"*) ;;
  *) status=FAILED said="exit status $code: ${said:-$(tail -n 1 "$log")}" ;;
  esac
  result executed "$rig" $status llvmpipe "llama.cpp $(sed -n 's/^libllama0 //p' "$cache/$tree/versions")" "$said" \
    $((SECONDS - start))
}

# ---- 64-bit Arm ----

in_arm64() { "$here/arm64.sh" run "$@"; }

# Once, before the rig that needs it.
arm64=no
build_arm64() {
  "$here/arm64.sh" build && fetch sid-arm64 sid arm64 $libraries mesa-vulkan-drivers \
    vulkan-validationlayers && arm64=yes
}

# On Debian 12's lavapipe the self-test fails under emulation: it unpacks f16 wrongly there.
execute_arm64() {
  local rig=$1 tests=$2 start log=$out/arm64.log description=$'qemu\tno driver\tnone, host tests only'
  wanted "$rig" || return 0
  [ $arm64 = yes ] || { absent executed "$rig"; return; }
  start=$SECONDS
  # Emulated, a driver takes minutes to compile the first kernels.
  if [ $mode = full ]; then
    tests="$tests $3"
    description=$(in_arm64 sid-arm64 lvp tools/laprox devices --json 2>"$log" | describe)
  fi
  in_build() { "$here/arm64.sh" run sid-arm64 lvp "tests/$1" "${@:2}"; }
  export -f in_build
  export here out
  finish_execute "$rig" "$(run_tests "$log" "$tests" bash -c 'in_build "$@"' in_build)" "$description" "$start"
}

# ---- Windows ----

execute_wine() {
  local start=$SECONDS said
  wanted "$1" || return 0
  said=$("$here/wine.sh" 2>"$out/wine.log")
  case $? in
  0) result executed "$1" ok "$(echo "$said" | sed -n 's/^device: //p')" "$(echo "$said" | sed -n 's/^driver: //p')" \
    "$(echo "$said" | tail -n 1)" $((SECONDS - start)) ;;
  77) absent executed "$1" ;;
  *) result executed "$1" FAILED '' '' "$(tail -n 1 "$out/wine.log")" $((SECONDS - start)) ;;
  esac
}
