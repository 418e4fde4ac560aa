#!/bin/sh
# intel_shim.sh: builds Mesa's pretended Intel kernel driver, which Debian does not package, from Debian's Mesa source
# into the matrix's cache, as intel-shim/libintel_noop_drm_shim.so. About a minute.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${LAPROX_MATRIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/laprox-matrix}
suite=trixie
out=$cache/intel-shim
shim=libintel_noop_drm_shim.so
[ -e "$out/$shim" ] && exit 0

"$here/fetch.sh" mesa-source $suite - --source mesa
"$here/fetch.sh" mesa-build $suite "$(dpkg --print-architecture)" --only meson python3-mako python3-packaging libdrm-dev libdrm2
"$here/fetch.sh" mesa-tools host - flex bison
tools=$cache/mesa-tools/root/usr build=$cache/mesa-build/root/usr
PATH=$tools/bin:$PATH LD_LIBRARY_PATH=$(echo "$tools"/lib/*-linux-gnu) BISON_PKGDATADIR=$tools/share/bison M4=$tools/bin/m4
[ -x "$M4" ] || M4=m4
PYTHONPATH=$build/lib/python3/dist-packages
libraries=$(echo "$build"/lib/*-linux-gnu)
PKG_CONFIG_PATH=$libraries/pkgconfig
export PATH LD_LIBRARY_PATH BISON_PKGDATADIR M4 PYTHONPATH PKG_CONFIG_PATH

mkdir -p "$out"
fail() {
  echo "intel_shim.sh: $1: $(grep -E 'ERROR:|error:|cannot' "$out/log" | head -n 1)" >&2
  exit 1
}
python3 "$build/bin/meson" setup --wipe "$out/build" "$cache/mesa-source/root" \
  -Dtools=drm-shim,intel -Dplatforms= -Dgallium-drivers= -Dvulkan-drivers= -Dvideo-codecs= -Dopengl=false \
  -Dgbm=disabled -Dglx=disabled -Degl=disabled -Dgles1=disabled -Dgles2=disabled -Dshared-glapi=disabled \
  -Dllvm=disabled -Dvalgrind=disabled -Dlibunwind=disabled -Dzstd=disabled -Dxmlconfig=disabled \
  -Dc_args="-I$build/include -I$build/include/libdrm" -Dcpp_args="-I$build/include -I$build/include/libdrm" \
  -Dc_link_args="-L$libraries" -Dcpp_link_args="-L$libraries" >"$out/log" 2>&1 || fail "meson setup"
ninja -C "$out/build" "src/intel/tools/$shim" >>"$out/log" 2>&1 || fail ninja
cp "$out/build/src/intel/tools/$shim" "$out/"
rm -rf "$out/build"
