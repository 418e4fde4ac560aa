#!/bin/sh
# mesa_drivers.sh: builds what Debian packages for no PC, from Debian's Mesa source into the matrix's cache as mesa-drivers:
# the drivers for Mali (PanVK) and Raspberry Pi (V3DV) with their pretended kernels, and Intel's pretended kernel.
#
# Compilers and libraries come from the same release, in a tree of their own that is entered by chroot in a user namespace
# and deleted afterwards: 1.5 GB. Three minutes on two processors.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${LAPROX_MATRIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/laprox-matrix}
suite=trixie
out=$cache/mesa-drivers
built='src/panfrost/vulkan/libvulkan_panfrost.so src/panfrost/drm-shim/libpanfrost_noop_drm_shim.so
  src/broadcom/vulkan/libvulkan_broadcom.so src/broadcom/drm-shim/libv3d_noop_drm_shim.so
  src/intel/tools/libintel_noop_drm_shim.so'
[ ! -e "$out/versions" ] || exit 0

fail() {
  echo "mesa_drivers.sh: $*" >&2
  exit 1
}

[ "$(dpkg --print-architecture)" = amd64 ] || fail "needs a PC of 64 bits"
unshare --map-root-user --mount true 2>/dev/null || fail "needs user namespaces"
"$here/fetch.sh" mesa-source $suite - --source mesa
"$here/fetch.sh" mesa-builder $suite amd64 bash dash coreutils sed grep gcc g++ meson ninja-build pkgconf python3-mako \
  python3-packaging python3-yaml python3-pycparser flex bison libdrm-dev llvm-19-dev libclang-19-dev libclc-19-dev \
  libllvmspirvlib-19-dev spirv-tools zlib1g-dev libexpat1-dev libelf-dev
tree=$cache/mesa-builder/root
mkdir -p "$out" "$tree/mesa" "$tree/build" "$tree/proc" "$tree/dev"

# The pretended Raspberry Pi knows an older kernel than the driver wants.
sed 's/case DRM_V3D_PARAM_SUPPORTS_CSD:/case DRM_V3D_PARAM_SUPPORTS_MULTISYNC_EXT: &/' \
  "$cache/mesa-source/root/src/broadcom/drm-shim/v3d_noop.c" >"$tree/v3d_noop.c"

cat >"$tree/build.sh" <<END
set -eu
export PATH=/usr/bin:/usr/lib/llvm-19/bin LANG=C.UTF-8 CC=gcc CXX=g++
cd /build
meson setup --wipe all /mesa --buildtype=release -Dcpp_rtti=true -Dtools=drm-shim,intel -Dplatforms= -Dgallium-drivers= \
  -Dvulkan-drivers=panfrost,broadcom -Dvideo-codecs= -Dopengl=false -Dgbm=disabled -Dglx=disabled -Degl=disabled \
  -Dgles1=disabled -Dgles2=disabled -Dllvm=enabled -Dshared-llvm=enabled -Dvalgrind=disabled -Dlibunwind=disabled \
  -Dxmlconfig=disabled -Dc_args=-O1 -Dcpp_args=-O1
ninja -C all $(echo $built)
END
unshare --map-root-user --mount sh -eu -c '
  mount --bind "$1/mesa-source/root" "$2/mesa"
  mount --bind "$2/v3d_noop.c" "$2/mesa/src/broadcom/drm-shim/v3d_noop.c"
  mount --rbind /dev "$2/dev"
  mount --rbind /proc "$2/proc"
  exec chroot "$2" /bin/sh /build.sh' sh "$cache" "$tree" >"$out/log" 2>&1 ||
  fail "$(grep -E 'ERROR:|error:|cannot' "$out/log" | head -n 1)"
for file in $built; do cp "$tree/build/all/$file" "$out/"; done
cp "$cache/mesa-source/versions" "$out/versions"
rm -rf "$cache/mesa-builder"
