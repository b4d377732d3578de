#!/bin/bash
# Sets up what the project needs on Debian 12: build packages, and Vinyl Cache
# 9.0 (Varnish Cache's name since 2026) in a prefix of its own. Run it as often
# as you like; when everything is there it does nothing.
#
#   VINYL_PREFIX=DIR   where to (default /opt/vmod-kvm/vinyl for root,
#                      ~/.local/share/vmod-kvm/vinyl for others)
#   VINYL_FROM=source|binary   only this way (default: source, then binary)
#   VINYL_SUITE=forky  Debian suite to take it from
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/env.sh
. "$here/env.sh"

# Raise the number when the way Vinyl is installed changes.
vinyl_want="vinyl-cache 9.0 recipe 1"
packages="
    build-essential autoconf automake libtool pkg-config git curl ca-certificates procps gdb
    libpcre2-dev libedit-dev libncurses-dev libjemalloc-dev
    python3 python3-docutils python3-sphinx patchelf
    libclang1-14 libclang-common-14-dev
    musl-tools libpng-dev zlib1g-dev libsqlite3-dev"

pkg_stamp=$VINYL_PREFIX/.packages-stamp
vinyl_stamp=$VINYL_PREFIX/.vinyl-stamp
have() { [ -r "$1" ] && [ "$(<"$1")" = "$2" ]; }
if have "$pkg_stamp" "$packages" && have "$vinyl_stamp" "$vinyl_want"; then
    exit 0
fi

suite=${VINYL_SUITE:-forky}
# Sources, build and logs. Kept when something failed.
work=$(mktemp -d "${TMPDIR:-/var/tmp}/vmod-kvm-setup.XXXXXX")
name=setup
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
done_clean=
# shellcheck disable=SC2317 # called by the trap
cleanup() { if [ -n "$done_clean" ]; then rm -rf "$work"; fi; }
trap cleanup EXIT

command -v apt-get >/dev/null || die "this script knows Debian 12 only (no apt-get here).
  By hand: install Vinyl Cache 9.0 with its headers, a C compiler, libclang, musl-gcc,
  static libpng, zlib and sqlite3, and see scripts/setup.sh for the layout of \$VINYL_PREFIX/compat."
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"

if ! { mkdir -p "$VINYL_PREFIX" && [ -w "$VINYL_PREFIX" ]; }; then
    die "cannot write to $VINYL_PREFIX; set VINYL_PREFIX to another folder"
fi
exec 9>"$VINYL_PREFIX.lock"
flock 9 # a second set-up at the same time waits here, then finds everything done

# shellcheck disable=SC2086 # a list of words
need_packages $packages
printf '%s' "$packages" >"$pkg_stamp"

fetch_source() {
    mkdir -p "$work/source" && cd "$work/source" &&
        private_apt apt-get -q source --download-only vinyl-cache &&
        private_apt apt-get -q download vtest2-source # varnishtest's source, a package of its own
}

build_source() {
    # apt has checked the signatures already
    cd "$work/source" &&
        dpkg-source --no-check -x vinyl-cache_*.dsc tree &&
        dpkg-deb -x vtest2-source_*.deb vtest2 &&
        mkdir -p tree/bin/vinyltest/vtest2 &&
        cp -a vtest2/usr/src/vtest2/. tree/bin/vinyltest/vtest2/ &&
        cd tree &&
        autoreconf -i &&
        VCC_GCC=gcc VCC_CFLAGS="-g -O2" ./configure -q --prefix="$VINYL_PREFIX" \
            --localstatedir=/var --disable-dependency-tracking --without-contrib &&
        make -s -j"$(nproc)"
}

install_source() {
    empty_prefix && make -s -C "$work/source/tree" install &&
        make_compat "$VINYL_PREFIX" "$VINYL_PREFIX/lib"
}

fetch_binary() {
    mkdir -p "$work/binary" && cd "$work/binary" &&
        private_apt apt-get -q download vinyl-cache libvinylapi3 libvinylapi-dev libc6
}

# Debian's binaries want a newer libc than Debian 12's: they get their own, in
# the prefix, by interpreter and rpath.
install_binary() {
    local f lib=$VINYL_PREFIX/usr/lib/x86_64-linux-gnu
    empty_prefix || return
    for f in "$work"/binary/*.deb; do
        dpkg-deb -x "$f" "$VINYL_PREFIX" || return
    done
    for f in "$VINYL_PREFIX"/usr/sbin/vinyld "$VINYL_PREFIX"/usr/bin/vinyl{test,adm,log,stat,ncsa,top,hist}; do
        patchelf --set-interpreter "$lib/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$lib" "$f" || return
    done
    sed -i "s#^prefix=.*#prefix=$VINYL_PREFIX/usr#" "$lib/pkgconfig/vinylapi.pc" &&
        make_compat "$VINYL_PREFIX/usr" "$lib" &&
        rm "$VINYL_PREFIX"/compat/bin/{varnishd,vinyld} &&
        # these binaries look for their own VMODs (std ...) in /usr/lib; -V stands alone
        cat >"$VINYL_PREFIX/compat/bin/varnishd" <<END &&
#!/bin/sh
if [ "\$*" = -V ]; then exec $VINYL_PREFIX/usr/sbin/vinyld -V; fi
exec $VINYL_PREFIX/usr/sbin/vinyld -p vmod_path=$lib/vinyl-cache/vmods "\$@"
END
        chmod +x "$VINYL_PREFIX/compat/bin/varnishd" &&
        ln -s varnishd "$VINYL_PREFIX/compat/bin/vinyld"
}

# What an earlier set-up left goes; anything else is not ours to delete.
empty_prefix() {
    if [ -n "$(ls "$VINYL_PREFIX")" ] && [ ! -d "$VINYL_PREFIX/compat" ]; then
        echo "$VINYL_PREFIX is not empty and not made by this script; set VINYL_PREFIX to an empty folder"
        return 1
    fi
    # compat marks the prefix as ours: it goes last and comes first
    find "$VINYL_PREFIX" -mindepth 1 -maxdepth 1 ! -name compat ! -name .packages-stamp -exec rm -rf {} + &&
        rm -rf "$VINYL_PREFIX/compat" && mkdir "$VINYL_PREFIX/compat"
}

# make_compat ROOT LIBDIR: the names that the crate "varnish" 0.8 expects. It
# knows those of before the project was renamed, and takes a pkg-config version
# of 9 or more for another product with other structures: so we say 8.0.1.
make_compat() {
    local root=$1 lib=$2 c=$VINYL_PREFIX/compat t
    mkdir -p "$c"/{bin,lib,pkgconfig,include/cache} || return
    echo '#include "cache/cache_vinyld.h"' >"$c/include/cache/cache_varnishd.h"
    for t in adm hist log ncsa stat test top; do
        ln -sfn "$root/bin/vinyl$t" "$c/bin/varnish$t"
        ln -sfn "$root/bin/vinyl$t" "$c/bin/vinyl$t"
    done
    ln -sfn "$root/sbin/vinyld" "$c/bin/varnishd"
    ln -sfn "$root/sbin/vinyld" "$c/bin/vinyld"
    ln -sfn "$root/share/vinyl-cache/vmodtool.py" "$c/vmodtool.py"
    ln -sfn "$lib/libvinylapi.so" "$c/lib/libvarnishapi.so"
    ln -sfn "$lib/libvinylapi.so" "$c/lib/libvinylapi.so"
    ln -sfn "$lib/libvinylapi.so.3" "$c/lib/libvinylapi.so.3"
    ln -sfn "$lib/pkgconfig/vinylapi.pc" "$c/pkgconfig/vinylapi.pc"
    sed -e 's/^Version:.*/Version: 8.0.1/' \
        -e "s#^Cflags:.*#Cflags: -I$c/include -I\${pkgincludedir}#" \
        -e "s#^Libs:.*#Libs: -L$c/lib -lvarnishapi#" \
        "$lib/pkgconfig/vinylapi.pc" >"$c/pkgconfig/varnishapi.pc" &&
        ls -L "$c"/bin/* "$c"/lib/* "$c"/pkgconfig/* "$c/vmodtool.py" && # no dangling link
        "$c/bin/varnishd" -V
}

from_source() {
    step "Vinyl Cache source, from Debian $suite" fetch_source &&
        step "Vinyl Cache build (about a minute)" build_source &&
        step "Vinyl Cache into $VINYL_PREFIX" install_source
}
from_binary() {
    step "Vinyl Cache binaries, from Debian $suite" fetch_binary &&
        step "Vinyl Cache into $VINYL_PREFIX" install_binary
}

keep_logs=
if ! have "$vinyl_stamp" "$vinyl_want"; then
    step "package lists of Debian $suite" private_apt_lists "$suite" ||
        die "cannot read Debian's package lists from $(debian_mirror)"
    case ${VINYL_FROM:-any} in
    source) from_source || die "Vinyl Cache could not be built" ;;
    binary) from_binary || die "Vinyl Cache could not be installed" ;;
    any)
        if ! from_source; then
            echo "setup: the source did not work out, taking Debian's binary packages"
            keep_logs=1
            from_binary || die "Vinyl Cache could not be installed"
        fi
        ;;
    *) die "VINYL_FROM is 'source' or 'binary', not '$VINYL_FROM'" ;;
    esac
    # Tells one installation from the next, for those who build against it.
    date -u +"$vinyl_want, %F %T" >"$VINYL_PREFIX/.vinyl-build"
    printf '%s' "$vinyl_want" >"$vinyl_stamp"
fi
if [ -z "$keep_logs" ]; then done_clean=1; fi
echo "setup: done; $("$VARNISHD" -V 2>&1 | head -n 1)"
