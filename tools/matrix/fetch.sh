#!/bin/sh
# fetch.sh NAME SUITE ARCH PACKAGE…: unpacks Debian packages and all they depend on into the matrix's cache, as NAME.
# fetch.sh NAME host - PACKAGE…: packages of this machine's own release, less what is installed already.
# fetch.sh NAME SUITE ARCH --only PACKAGE…: without what they depend on.
# fetch.sh NAME SUITE - --source PACKAGE: a package's source, unpacked into NAME/root without Debian's changes.
#
# Nothing is installed and apt's own state stays as it is. NAME/root is the tree, NAME/versions lists what is in it. A
# tree that is there already is left alone. LAPROX_MIRROR is the root of another archive than Debian's own (…/debian).
# Exit status 1: this rig can't be had here; one line says why.
set -eu
cache=${LAPROX_MATRIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/laprox-matrix}
mirror=${LAPROX_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
name=$1 suite=$2 arch=$3
shift 3
tree=$cache/$name

fail() {
  echo "fetch.sh: $name: $*" >&2
  exit 1
}

[ -s "$tree/versions" ] && exit 0
command -v apt-get >/dev/null || fail "needs apt-get"
rm -rf "$tree"
mkdir -p "$tree/root" "$tree/apt/lists/partial" "$tree/apt/archives/partial"

# An apt of its own: other sources, other lists, a machine on which nothing is installed.
{
  echo "Dir::State::Lists \"$tree/apt/lists\";"
  echo "Dir::Cache \"$tree/apt\";"
  echo "Dir::Cache::Archives \"$tree/apt/archives\";"
  echo 'Debug::NoLocking "true"; APT::Sandbox::User ""; APT::Get::Assume-Yes "true"; APT::Install-Recommends "false";'
  if [ "$suite" != host ]; then
    [ -s "$keyring" ] || fail "needs $keyring (package debian-archive-keyring)"
    : >"$tree/apt/status"
    printf '%s [signed-by=%s] %s %s main\n' deb "$keyring" "$mirror" "$suite" deb-src "$keyring" "$mirror" "$suite" \
      >"$tree/apt/sources.list"
    echo "Dir::Etc::SourceList \"$tree/apt/sources.list\"; Dir::Etc::SourceParts \"/dev/null\";"
    echo "Dir::State::Status \"$tree/apt/status\";"
    [ "$arch" = - ] || echo "APT::Architecture \"$arch\"; APT::Architectures { \"$arch\"; };"
  fi
} >"$tree/apt/apt.conf"
APT_CONFIG=$tree/apt/apt.conf
export APT_CONFIG

apt-get -qq update >"$tree/apt/log" 2>&1 || fail "no package lists: $(tail -n 1 "$tree/apt/log")"
if [ "$1" = --source ]; then
  (cd "$tree/apt/archives" && apt-get -qq --download-only --tar-only source "$2") >>"$tree/apt/log" 2>&1 ||
    fail "$(tail -n 1 "$tree/apt/log")"
  tar -x -f "$tree"/apt/archives/*.orig.tar.* -C "$tree/root" --strip-components=1
  basename "$tree"/apt/archives/*.orig.tar.* >"$tree/apt/versions"
  rm -rf "$tree/apt/archives" "$tree/apt/lists"
  mv "$tree/apt/versions" "$tree/versions"
  exit 0
elif [ "$1" = --only ]; then
  shift
  (cd "$tree/apt/archives" && apt-get -qq download "$@") >>"$tree/apt/log" 2>&1 || fail "$(tail -n 1 "$tree/apt/log")"
else
  apt-get -qq --download-only install "$@" >>"$tree/apt/log" 2>&1 || fail "$(tail -n 1 "$tree/apt/log")"
fi

# Merged /usr: packages differ in where they think their libraries are.
for folder in bin sbin lib lib64; do
  mkdir -p "$tree/root/usr/$folder"
  ln -s "usr/$folder" "$tree/root/$folder"
done
for package in "$tree"/apt/archives/*.deb; do
  [ -e "$package" ] || break
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tree/root" --keep-directory-symlink --no-same-owner
  dpkg-deb --show --showformat '${Package} ${Version}\n' "$package" >>"$tree/apt/versions"
done
# Links that lead out of the tree lead back into it.
find "$tree/root" -type l -lname '/*' | while read -r link; do
  target=$(readlink "$link")
  [ ! -e "$tree/root$target" ] || ln -sfnr "$tree/root$target" "$link"
done
[ ! -e "$tree/root/usr/bin/dash" ] || ln -sfn dash "$tree/root/usr/bin/sh" # dash's own installer would
echo "$suite $arch" >>"$tree/apt/versions"
rm -rf "$tree/apt/archives" "$tree/apt/lists"
mv "$tree/apt/versions" "$tree/versions"
