#!/bin/bash
# Sets up what the project needs on Debian 12: build packages, and Vinyl Cache
# 9.0 (Varnish Cache's name since 2026) in a prefix of its own. Run it as often
# as you like; when everything is there it does nothing.
#
#   VINYL_PREFIX=DIR   where to (default /opt/vmod-kvm/vinyl for root,
#                      ~/.local/share/vmod-kvm/vinyl for others)
#   VINYL_FROM=source|binary   only this way (default: source, then binary)
#   VINYL_SUITE=forky  Debian suite to take it from
#   VARNISH_PREFIX=DIR an installed Varnish is taken: nothing is installed
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/env.sh
. "$here/env.sh"
# shellcheck source=scripts/compat.sh
. "$here/compat.sh"

if [ -n "${VARNISH_PREFIX:-}" ]; then
    for program in cc pkg-config python3 rst2man; do
        command -v "$program" >/dev/null || missing="${missing:-} $program"
    done
    if [ -n "${missing:-}" ]; then
        echo "setup: error: with VARNISH_PREFIX nothing is installed, and these programs are missing:$missing" >&2
        exit 1
    fi
    [ -z "$VARNISH_COMPAT" ] || make_compat "$VARNISH_COMPAT" "$VARNISH_PC" >/dev/null
    exit 0
fi

# Raise the number when the way Vinyl is installed changes.
vinyl_want="vinyl-cache 9.0 recipe 1"
packages="
    build-essential autoconf automake libtool pkg-config git curl ca-certificates procps gdb
    libpcre2-dev libedit-dev libncurses-dev libjemalloc-dev
    python3 python3-docutils python3-sphinx patchelf
    libclang1-14 libclang-common-14-dev
    musl-tools libpng-dev zlib1g-dev libjpeg62-turbo-dev libwebp-dev libsqlite3-dev"

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
  static libpng, zlib, libjpeg, libwebp and sqlite3, and see scripts/setup.sh for the layout of \$VINYL_PREFIX/compat."
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
        own_compat "$VINYL_PREFIX/lib"
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
        own_compat "$lib" &&
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

own_compat() {
    make_compat "$VARNISH_COMPAT" "$1/pkgconfig/vinylapi.pc" && "$VARNISHD" -V
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
    printf '%s' "$vinyl_want" >"$vinyl_stamp"
fi
if [ -z "$keep_logs" ]; then done_clean=1; fi
echo "setup: done; $("$VARNISHD" -V 2>&1 | head -n 1)"
