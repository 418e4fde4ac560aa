# prepare.sh: sourced by quickstart.sh, test.sh and others. Finds out what is missing by looking for it, not for
# packages, so that tools from elsewhere count; installs it with apt where that can be done, otherwise names it.

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# need_built PROGRAM…: stops where one isn't there.
need_built() {
  for program; do
    [ -x "$program" ] || die "no program at $program: build with tests first, tools/test.sh does"
  done
}

# longest_of LEAST MOST LENGTH…: checks that these are numbers of tokens within the limits, and prints the largest.
longest_of() {
  least=$1 most=$2 longest=0
  shift 2
  for length; do
    case $length in '' | *[!0-9]*) die "$length is not a number of tokens" ;; esac
    [ "$length" -ge "$least" ] && [ "$length" -le "$most" ] || die "$length tokens: lengths are $least to $most"
    [ "$length" -le "$longest" ] || longest=$length
  done
  echo "$longest"
}

has_program() { command -v "$1" >/dev/null 2>&1; }
has_library() { has_program pkg-config && pkg-config --exists "$1" 2>/dev/null; }
has_header() { [ -e "/usr/include/$1" ] || [ -e "/usr/local/include/$1" ]; }

has_vulkan_driver() {
  [ -n "${VK_ICD_FILENAMES:-}${VK_DRIVER_FILES:-}" ] && return 0
  for manifest in /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json; do
    [ -e "$manifest" ] && return 0
  done
  return 1
}

has_validation_layer() {
  for folder in /usr/share /etc /usr/local/share; do
    [ -e "$folder/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" ] && return 0
  done
  return 1
}

# need PACKAGE CHECK…: remembers the package where the check fails.
missing=
need() {
  package=$1
  shift
  "$@" || missing="$missing $package"
}

# want PACKAGE CHECK…: the same for what a test is skipped without.
wanted=
want() {
  package=$1
  shift
  "$@" || wanted="$wanted $package"
}

need_for_building() {
  need gcc has_program cc
  need libc6-dev has_header stdio.h
  need meson has_program meson
  need ninja-build has_program ninja
  need pkg-config has_program pkg-config
  need glslang-tools has_program glslangValidator
  need libvulkan-dev has_library vulkan
  need libvulkan-volk-dev has_header volk.h
  need libjansson-dev has_library jansson
  need libpcre2-dev has_library libpcre2-8
  need mesa-vulkan-drivers has_vulkan_driver
}

need_for_testing() {
  need libcmocka-dev has_library cmocka
  need vulkan-validationlayers has_validation_layer
  need spirv-tools has_program spirv-val
  need python3 has_program python3
  need cmake has_program cmake
}

need_for_checking() {
  want libopenmpi-dev has_library ompi-c
  want openmpi-bin has_program mpirun
  need clang has_program clang
  need clang-format has_program clang-format
  need clang-tidy has_program clang-tidy
  [ "$(uname -m)" = x86_64 ] || return 0
  need gcc-aarch64-linux-gnu has_program aarch64-linux-gnu-gcc
  need libc6-dev-arm64-cross [ -e /usr/aarch64-linux-gnu/include/stdio.h ]
  need gcc-arm-linux-gnueabihf has_program arm-linux-gnueabihf-gcc
  need libc6-dev-armhf-cross [ -e /usr/arm-linux-gnueabihf/include/stdio.h ]
  need qemu-user-static has_program qemu-aarch64-static
  need musl-tools has_program musl-gcc
  need gcc-mingw-w64-x86-64 has_program x86_64-w64-mingw32-gcc
  need curl has_program curl
}

# install_packages PACKAGE…: with apt-get, whose words go to $log.
install_packages() {
  as_root=
  if [ "$(id -u)" -ne 0 ]; then
    has_program sudo || { echo "E: neither root nor sudo" >"$log" && return 1; }
    as_root=sudo
  fi
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get update >"$log" 2>&1 &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1
}

install_missing() {
  [ -n "$missing$wanted" ] || return 0
  if ! has_program apt-get; then
    [ -z "$missing" ] || die "missing, and there is no apt-get to install it (Debian's names):$missing"
    return 0
  fi
  log=$(mktemp) || die "no temporary file can be made"
  # shellcheck disable=SC2086
  if [ -n "$missing" ] && echo "installing:$missing" && ! install_packages $missing; then
    reason=$(grep -E '^(E:|sudo:)' "$log" | head -n 1)
    rm -f "$log"
    die "could not install$missing: ${reason:-apt-get failed}"
  fi
  # shellcheck disable=SC2086
  if [ -n "$wanted" ] && echo "installing:$wanted" && ! install_packages $wanted; then
    echo "could not install$wanted: tests that need it are skipped"
  fi
  rm -f "$log"
}

# build WITH_TESTS: configures $root/build once and builds it, for tests without warnings; shows the compiler's words only
# where it fails.
build() {
  log=$(mktemp) || die "no temporary file can be made"
  if [ -e "$root/build/build.ninja" ]; then
    [ "$1" = false ] || meson configure "$root/build" -Dtests=true -Dwerror=true >"$log" 2>&1 || { cat "$log" >&2; die "configuring failed"; }
  else
    meson setup "$root/build" "$root" "-Dtests=$1" "-Dwerror=$1" >"$log" 2>&1 || { cat "$log" >&2; die "configuring failed"; }
  fi
  ninja -C "$root/build" >"$log" 2>&1 || { grep -vE '^\[|^ninja: Enter' "$log" >&2; die "building failed"; }
  rm -f "$log"
}
