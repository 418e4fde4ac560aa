#!/usr/bin/env bash
# matrix.sh [quick|full]: laprox on many drivers, with no hardware and without root.
# matrix.sh row PATTERN: of the full matrix only the rigs whose names match, such as 'Intel*'.
#
# EXECUTED rigs run tests: software drivers of several Mesa releases, SwiftShader, a device of Vulkan's minimum limits,
# 64-bit Arm under emulation, Windows under Wine. COMPILED rigs make every pipeline with a vendor's real Mesa compiler
# over a pretended kernel driver, and report registers and spills; nothing runs there.
#
# Drivers are packages of Debian, from its archive or a mirror (LAPROX_MIRROR: its root, …/debian), unpacked into
# ~/.cache/laprox-matrix (LAPROX_MATRIX_CACHE); results go to build-matrix (LAPROX_MATRIX_OUT): results.tsv (one line a
# rig), kernels.tsv (one line a kernel and device) and logs. As many rigs run at once as there are processors. A full run
# also renews tools/matrix/results.tsv and README.md's table, single rows theirs. What can't be had here is listed as absent,
# which is no failure. Exit status 1: something failed, or a hot kernel spills.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/tools/matrix
export LAPROX_MATRIX_CACHE=${LAPROX_MATRIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/laprox-matrix}
cache=$LAPROX_MATRIX_CACHE
out=${LAPROX_MATRIX_OUT:-$root/build-matrix}
mode=${1:-full} only='*'
case $mode:$# in
quick:1 | full:[01]) ;;
row:2) mode=full only=$2 ;;
*)
  echo "usage: matrix.sh [quick|full|row PATTERN]" >&2
  exit 2
  ;;
esac
libraries='libjansson4 libpcre2-8-0 libcmocka0 libc6 libvulkan1'
export LAPROX_TEST_DATA=$root/tests/data MESA_SHADER_CACHE_DISABLE=true VK_LOADER_LAYERS_DISABLE='~implicit~'
unset LAPROX_DEVICE LAPROX_VARIANTS
rm -rf "$out/rigs" "$out"/*.json
mkdir -p "$cache" "$out/icd" "$out/rigs"
cache=$(cd "$cache" && pwd) out=$(cd "$out" && pwd) # rigs run in folders of their own
export LAPROX_MATRIX_CACHE=$cache LAPROX_MATRIX_OUT=$out

. "$here/rigs.sh"

# ---- what is built ----

# The newest glslang, for shaders with cooperative matrices; this machine's where there is none.
native=()
if fetch sid-amd64 sid amd64 $libraries mesa-vulkan-drivers mesa-drm-shim vulkan-validationlayers glslang-tools; then
  wrap_tool sid-amd64 glslangValidator
  printf "[binaries]\nglslangValidator = '%s'\n" "$cache/sid-amd64/glslangValidator" >"$out/native.ini"
  native=(--native-file "$out/native.ini")
fi
build amd64 "${native[@]}" || exit 1

if wanted 'lavapipe on 64-bit Arm (emulated)'; then build_arm64; fi

# ---- executed ----

small='test_half test_policy test_selftest test_variants test_vk'
kernels="$small test_embed test_queues"
[ $mode = quick ] || kernels="$kernels test_kernels test_evict_file"
swiftshader="$small $([ $mode = quick ] && echo 'test_embed:one?segment*' || echo test_embed)"

if fetch bookworm-amd64 bookworm amd64 $libraries mesa-vulkan-drivers vulkan-validationlayers; then
  if fetch chromium bookworm amd64 --only chromium chromium-common; then
    mkdir -p "$cache/bookworm-amd64/root/usr/lib/swiftshader"
    cp "$cache/chromium/root/usr/lib/chromium/libvk_swiftshader.so" "$cache/bookworm-amd64/root/usr/lib/swiftshader/"
    rig execute SwiftShader bookworm-amd64 ../swiftshader/libvk_swiftshader.so "$swiftshader"
  else
    rig absent executed SwiftShader
  fi
  rig execute 'lavapipe, 256-bit vectors' bookworm-amd64 lvp "$kernels" LP_NATIVE_VECTOR_WIDTH=256
  rig execute 'lavapipe, 128-bit vectors' bookworm-amd64 lvp "$small" LP_NATIVE_VECTOR_WIDTH=128
  rig execute 'lavapipe, 512-bit vectors' bookworm-amd64 lvp "$small" LP_NATIVE_VECTOR_WIDTH=512
  rig execute "Vulkan's minimum limits" bookworm-amd64 lvp \
    'test_failures:test_small_limits test_failures:test_one_head_a_binding'
else
  rig absent executed 'lavapipe of Debian 12'
  rig absent executed SwiftShader
fi
if [ $mode = full ]; then
  if fetch trixie-amd64 trixie amd64 $libraries mesa-vulkan-drivers vulkan-validationlayers; then
    rig execute 'lavapipe of Debian 13' trixie-amd64 lvp "$kernels"
  else
    rig absent executed 'lavapipe of Debian 13'
  fi
fi
if has sid-amd64; then
  rig execute 'lavapipe of Debian sid' sid-amd64 lvp "$kernels$([ $mode = quick ] || echo ' test_attention')"
  # Scoring on matrices, which software devices otherwise pass over where they have subgroups.
  rig execute 'lavapipe of Debian sid, matrices' sid-amd64 lvp \
    "test_layout$([ $mode = quick ] || echo ' test_embed test_softmax_sums')" LAPROX_VARIANTS=storage16,matrix
  [ $mode = quick ] || rig execute 'lavapipe of Debian sid, baseline' sid-amd64 lvp "$kernels" LAPROX_VARIANTS=baseline
else
  rig absent executed 'lavapipe of Debian sid'
fi
rig execute_arm64 'lavapipe on 64-bit Arm (emulated)' 'test_half test_policy' \
  'test_selftest test_vk'
if [ $mode = full ]; then
  if fetch llama-amd64 sid amd64 $libraries mesa-vulkan-drivers libllama-dev; then
    rig execute_llama "llama.cpp's cache" llama-amd64
  else
    rig absent executed "llama.cpp's cache"
  fi
  rig execute_wine 'Windows under Wine'
fi

# ---- compiled ----

compile() { rig compile_on "$1" sid-amd64 "${@:2}"; }
if [ $mode = quick ]; then
  compile 'AMD RDNA3 (RADV)' radeon amdgpu AMDGPU_GPU_ID=navi31
else
  # The slow ones first, so that none runs on alone at the end.
  compile 'NVIDIA Ada (NVK)' nouveau nouveau NOUVEAU_CHIPSET=192
  if has trixie-amd64 && "$here/mesa_drivers.sh"; then
    compile_with_built() { rig compile_on "$1" trixie-amd64 "$2" "$cache/mesa-drivers/lib$3_noop_drm_shim.so" "${@:4}"; }
    compile_with_built 'Raspberry Pi 4 (V3DV)' "$cache/mesa-drivers/libvulkan_broadcom.so" v3d
    for mali in G610:a867 G310:ac74; do
      compile_with_built "Mali-${mali%:*} (PanVK)" "$cache/mesa-drivers/libvulkan_panfrost.so" panfrost \
        PAN_I_WANT_A_BROKEN_VULKAN_DRIVER=1 BIFROST_MESA_DEBUG=shaderdb PAN_GPU_ID=${mali#*:}
    done
    compile_with_built 'Intel Skylake (ANV)' intel intel INTEL_STUB_GPU_PLATFORM=skl
    compile_with_built 'Intel Tiger Lake (ANV)' intel intel INTEL_STUB_GPU_PLATFORM=tgl
    compile_with_built 'Intel Alchemist (ANV)' intel intel INTEL_STUB_GPU_PLATFORM=dg2
    compile_with_built 'Intel Lunar Lake (ANV)' intel intel INTEL_STUB_GPU_PLATFORM=lnl
    compile_with_built 'Intel Battlemage (ANV)' intel intel INTEL_STUB_GPU_PLATFORM=bmg
  else
    for name in 'Raspberry Pi 4 (V3DV)' 'Mali (PanVK)' 'Intel (ANV)'; do rig absent compiled "$name"; done
  fi
  rig absent compiled 'PowerVR (Mesa)' # no pretended kernel for a PC; emulated, it takes over ten minutes
  compile 'NVIDIA Turing (NVK)' nouveau nouveau NOUVEAU_CHIPSET=162
  compile 'Apple M1 (Honeykrisp)' asahi asahi
  compile 'Adreno 618 (Turnip)' freedreno freedreno FD_GPU_ID=618
  compile 'Adreno 660 (Turnip)' freedreno freedreno FD_GPU_ID=660
  compile 'Adreno 750 (Turnip)' freedreno freedreno FD_GPU_ID=750
  compile 'AMD Polaris (RADV)' radeon amdgpu AMDGPU_GPU_ID=polaris10
  compile 'AMD Vega (RADV)' radeon amdgpu AMDGPU_GPU_ID=vega10
  compile 'AMD RDNA2 (RADV)' radeon amdgpu AMDGPU_GPU_ID=navi21
  compile 'AMD RDNA3 (RADV)' radeon amdgpu AMDGPU_GPU_ID=navi31
  compile 'AMD RDNA4 (RADV)' radeon amdgpu AMDGPU_GPU_ID=gfx1201
fi
wait

# ---- results ----

results=$out/results.tsv bad=0
cat "$out"/rigs/*.tsv >"$results"
! cut -f 3 "$results" | grep -q FAILED || bad=1
python3 "$here/spills.py" --table "$out"/*.json >"$out/kernels.tsv" || bad=1
python3 "$here/table.py" "$results"
if [ $mode = full ]; then
  if [ "$only" = '*' ]; then
    cp "$results" "$here/results.tsv"
  else
    python3 "$here/table.py" --merge "$here/results.tsv" "$results"
  fi
  python3 "$here/table.py" "$here/results.tsv" | python3 "$root/tools/replace_table.py" "$root/README.md" matrix
fi
echo "$SECONDS s"
exit $bad
