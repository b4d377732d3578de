#!/bin/bash
# Everything that run.sh needs, in SVM_DIR (default: "svm" beside the Vinyl
# prefix): QEMU 10 and Debian's stock kernels, unpacked there; nothing replaces
# the system's own. Does nothing when it is all there.
#
# Why QEMU 10: before 8.1 its emulation can run stale code after the kernel has
# patched itself, which KVM does often, and then hangs with two CPUs.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/env.sh
. "$here/../env.sh"
dir=${SVM_DIR:-$(dirname "$VINYL_PREFIX")/svm}
kernel=${SVM_KERNEL:-6.1} # or 6.12

stamp=$(cat "$here"/{build.sh,init,stage2,vmhold.c,extract-vmlinux.py} | cksum)
if [ "$(cat "$dir/kernel-$kernel/stamp" 2>/dev/null)" = "$stamp" ] && [ -e "$dir/qemu/stamp" ]; then
    exit 0
fi

name=svm
work=$(mktemp -d "${TMPDIR:-/var/tmp}/vmod-kvm-svm.XXXXXX")
# shellcheck source=scripts/lib.sh
. "$here/../lib.sh"
trap 'rm -rf "$work/apt" "$work/root" "$work"/*.deb' EXIT
case $kernel in
6.1) kernel_suite=bookworm ;;
6.12) kernel_suite=bookworm-backports ;;
*) die "SVM_KERNEL is 6.1 or 6.12, not $kernel" ;;
esac
# The system's qemu-system-x86 is there for the libraries that QEMU 10 needs.
need_packages qemu-system-x86 busybox-static cpio kmod xz-utils python3 gcc libc6-dev
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9

# unpack PACKAGE SUITE FOLDER
unpack() {
    (cd "$work" && rm -f ./*.deb && private_apt apt-get -q download "$1/$2" && dpkg -x ./*.deb "$3")
}

build_qemu() {
    local p
    rm -rf "$dir/qemu"
    for p in qemu-system-x86 qemu-system-common qemu-system-data seabios; do
        unpack "$p" bookworm-backports "$dir/qemu" || return
    done
    "$dir/qemu/usr/bin/qemu-system-x86_64" --version && touch "$dir/qemu/stamp"
}

build_kernel() {
    local k=$dir/kernel-$kernel image version rd=$work/initrd m f b
    # linux-image-amd64 depends on the current kernel's package. Not the cloud
    # kernel: it lacks 9p.
    image=$(private_apt apt-cache show linux-image-amd64 |
        sed -n 's/^Depends: \(linux-image-'"$kernel"'\.[^ ,]*\).*/\1/p' | sort -V | tail -n 1)
    [ -n "$image" ] || return
    unpack "$image" "$kernel_suite" "$work/root" || return
    version=$(ls "$work/root/lib/modules")
    rm -rf "$k" && mkdir -p "$k" "$rd"/{bin,proc,sys,dev,mod,tmp,new,host,ov} || return
    python3 "$here/extract-vmlinux.py" "$work/root/boot/vmlinuz-$version" "$k/vmlinux" &&
        depmod -b "$work/root" "$version" || return
    cp /bin/busybox "$rd/bin/" && ln -s busybox "$rd/bin/sh" &&
        install -m 755 "$here/init" "$rd/init" && cp "$here/stage2" "$rd/" &&
        gcc -O2 -static -o "$rd/vmhold" "$here/vmhold.c" || return
    for m in kvm-amd virtio_pci 9pnet_virtio 9p overlay; do
        modprobe -d "$work/root" -S "$version" --show-depends $m || return
    done | awk '/^insmod/ && !seen[$2]++ {print $2}' | while read -r f; do
        b=$(basename "${f%.xz}")
        if [ "$f" != "${f%.xz}" ]; then xz -dc "$f" >"$rd/mod/$b"; else cp "$f" "$rd/mod/$b"; fi
        echo "$b" >>"$rd/mod/order"
    done
    (cd "$rd" && find . | cpio -o -H newc --quiet) >"$k/initrd" && echo "$version" >"$k/version" &&
        echo "$stamp" >"$k/stamp"
}

step "package lists of Debian 12 and its backports" private_apt_lists bookworm bookworm-updates bookworm-backports ||
    die "cannot read Debian's package lists"
[ -e "$dir/qemu/stamp" ] || step "QEMU 10 into $dir" build_qemu || die "QEMU could not be had"
step "Linux $kernel into $dir" build_kernel || die "the kernel could not be had"
rm -rf "$work"
