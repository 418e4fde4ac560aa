#!/bin/sh
# android.sh [FOLDER [ABI…]]: builds laprox for Android 10 (API 29) and newer with the NDK (r26 or newer) that
# ANDROID_NDK_HOME names: libraries, program and tests, an AAR for app projects, and what adb needs to run the tests on a
# phone. FOLDER is build-android, ABI arm64-v8a, x86_64 and armeabi-v7a. Exit status 77: there is no NDK here.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/build-android}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- arm64-v8a x86_64 armeabi-v7a
abis=$*
ndk=${ANDROID_NDK_HOME:-${ANDROID_NDK_ROOT:-}}

die() {
  echo "android.sh: $*" >&2
  exit 1
}
[ -n "$ndk" ] || { echo "android.sh: skipped: no NDK; set ANDROID_NDK_HOME"; exit 77; }
revision=$(sed -n 's/^Pkg.Revision *= *\([0-9]*\).*/\1/p' "$ndk/source.properties" 2>/dev/null) || :
[ "${revision:-0}" -ge 26 ] || die "$ndk is not an NDK of release 26 or newer"
for programs in "$ndk"/toolchains/llvm/prebuilt/*/bin; do [ -d "$programs" ] || die "no toolchain in $ndk"; done
PATH=$programs:$PATH
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
version=$(sed -n "s/^  version: '\(.*\)',/\1/p" "$root/meson.build" | head -n 1)
package=$root/tools/package/android
aar=$folder/aar
rm -rf "$aar"
mkdir -p "$aar/prefab"
cp "$package/AndroidManifest.xml" "$aar/"
printf '{"schema_version": 2, "name": "laprox", "version": "%s", "dependencies": []}\n' "$version" >"$aar/prefab/prefab.json"

# module NAME LIBRARY HEADER…: one library with the headers it has.
module() {
  name=$1 library=$2
  shift 2
  module=$aar/prefab/modules/$name
  mkdir -p "$module/include/laprox" "$module/libs/android.$abi"
  for header; do cp "$root/include/laprox/$header" "$module/include/laprox/"; done
  printf '{"export_libraries": [], "library_name": "%s", "android": {"export_libraries": []}}\n' "$library" >"$module/module.json"
  printf '{"abi": "%s", "api": 29, "ndk": %s, "stl": "none", "static": false}\n' "$abi" "$revision" \
    >"$module/libs/android.$abi/abi.json"
  llvm-strip --strip-unneeded -o "$module/libs/android.$abi/$library.so" "$build/src/$library.so"
}

for abi in $abis; do
  build=$folder/$abi phone=$folder/phone-$abi
  "$root/tools/cross.sh" "android-$abi" "$build" || exit
  module laprox liblaprox laprox.h vulkan.h
  module runtime liblaprox-runtime laprox.h vulkan.h runtime.h
  rm -rf "$phone"
  mkdir -p "$phone/tests"
  for program in "$build"/tests/test_* "$build"/tests/fuzz_* "$build/tools/laprox" "$build/tools/examples/embed"; do
    [ -f "$program" ] && [ -x "$program" ] || continue
    case $program in */tests/test_*) to=$phone/tests ;; */tests/*) continue ;; *) to=$phone ;; esac
    llvm-strip -o "$to/${program##*/}" "$program"
  done
  cp "$build/src/liblaprox.so" "$phone/"
  cp "$package/run_tests.sh" "$phone/"
  echo "$abi: $(find "$phone/tests" -type f | wc -l) test programs. With a phone attached:
  adb push $phone /data/local/tmp/laprox && adb push $root/tests/data /data/local/tmp/laprox/data
  adb shell sh /data/local/tmp/laprox/run_tests.sh
  adb shell /data/local/tmp/laprox/laprox devices"
done

if command -v python3 >/dev/null; then
  python3 -c 'import shutil, sys; shutil.make_archive(sys.argv[1], "zip", sys.argv[2])' "$folder/laprox-$version" "$aar"
  mv "$folder/laprox-$version.zip" "$folder/laprox-$version.aar"
  echo "for app projects (tools/examples/android shows how): $folder/laprox-$version.aar"
fi
