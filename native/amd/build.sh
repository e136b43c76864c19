#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds libbroadhead_hip.so for AMD GPUs without an AMD GPU: Debian's hipcc in a chroot, made once.
#
#   native/amd/build.sh [BUILD_FOLDER [HEAD_SIZES]]     default native/target/amd; as root, with debootstrap
#
# With some head sizes only, "64 128", it is a test of the sources: such a library does not load.
# BROADHEAD_AMD_CHROOT names the chroot, default /var/tmp/broadhead-amd. A compiler's report of
# registers, local memory and spills is beside each object, as FILE.log.
set -euo pipefail
case "${1:-}" in
  -h | --help)
    sed -n '3,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${1:-$source_folder/target/amd}
chroot=${BROADHEAD_AMD_CHROOT:-/var/tmp/broadhead-amd}
suite=forky # Debian 12's own hipcc is too old for gfx942

if [[ ! -x $chroot/usr/bin/hipcc ]]; then
  # Debian 12's debootstrap does not know the suite by name.
  [[ -e /usr/share/debootstrap/scripts/$suite ]] || ln -s sid "/usr/share/debootstrap/scripts/$suite"
  rm -rf "$chroot"
  debootstrap --no-check-gpg --variant=minbase "$suite" "$chroot"
  cp -f /etc/resolv.conf "$chroot/etc/" 2> /dev/null || true
  chroot "$chroot" apt-get install -y --no-install-recommends hipcc libamdhip64-dev make
fi
# Nothing stays mounted: who removes the chroot must not remove devices.
trap 'umount "$chroot/proc" "$chroot/dev"' EXIT
for folder in proc dev; do
  mountpoint -q "$chroot/$folder" || mount --bind "/$folder" "$chroot/$folder"
done

# Only what changed is compiled again: the chroot keeps its objects.
mkdir -p "$chroot/broadhead"
rm -rf "$chroot/broadhead/src" "$chroot/broadhead/include"
cp -rp "$source_folder/src" "$source_folder/include" "$source_folder/amd/Makefile" "$chroot/broadhead/"
in_chroot() { chroot "$chroot" make --no-print-directory -C /broadhead "$@"; }
sizes=(${2:+HEAD_SIZES="$2"})
in_chroot -j "$(nproc)" "${sizes[@]}"
mkdir -p "$build"
rm -f "$build"/*.log
for file in libbroadhead_hip.so $(in_chroot -s "${sizes[@]}" logs); do
  cp "$chroot/broadhead/build/${file#build/}" "$build/"
done
ls -l "$build/libbroadhead_hip.so"
