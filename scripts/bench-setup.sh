#!/bin/bash
# Sets up what "make bench" needs beside scripts/setup.sh, on Debian 12: a compiler
# for WebAssembly, strace, and in a folder of their own nginx, fcgiwrap and oha.
# Run it as often as you like; when everything is there it does nothing.
#
#   BENCH_PREFIX=DIR   where to (default: "bench" beside VINYL_PREFIX)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/env.sh
. "$here/env.sh"

prefix=${BENCH_PREFIX:-$(dirname "$VINYL_PREFIX")/bench}
packages="clang lld wasi-libc libclang-rt-14-dev-wasm32 libfcgi-dev libstb-dev strace
    libcrypt1 libpcre2-8-0 libssl3 zlib1g"
oha=1.16.0
# Raise the number when the way things are installed changes.
want="$packages oha $oha recipe 1"
stamp=$prefix/.stamp
if [ -r "$stamp" ] && [ "$(<"$stamp")" = "$want" ]; then
    exit 0
fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/vmod-kvm-bench-setup.XXXXXX")
name=bench-setup
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
done_clean=
# shellcheck disable=SC2317 # called by the trap
cleanup() { if [ -n "$done_clean" ]; then rm -rf "$work"; fi; }
trap cleanup EXIT

if ! { mkdir -p "$prefix/bin" && [ -w "$prefix/bin" ]; }; then
    die "cannot write to $prefix; set BENCH_PREFIX to another folder"
fi
exec 9>"$prefix.lock"
flock 9 # a second set-up at the same time waits here
# shellcheck disable=SC2086 # a list of words
need_packages $packages

# Taken out of their packages: installed, these would start servers on this machine.
unpack_servers() {
    # shellcheck source=/dev/null
    . /etc/os-release
    private_apt_lists "$VERSION_CODENAME" && cd "$work" &&
        private_apt apt-get -q download "nginx/$VERSION_CODENAME" "fcgiwrap/$VERSION_CODENAME" || return
    local f
    for f in nginx fcgiwrap; do
        dpkg-deb -x "$work/$f"_*.deb "$work/$f" && install "$work/$f/usr/sbin/$f" "$prefix/bin/$f" || return
    done
    "$prefix/bin/nginx" -V -e stderr && "$prefix/bin/fcgiwrap" -h
}

install_oha() {
    cargo install oha --version "$oha" --locked --root "$prefix" --target-dir "$work/oha"
}

step "nginx and fcgiwrap into $prefix" unpack_servers || die "nginx and fcgiwrap could not be had"
if [ "$("$prefix/bin/oha" --version 2>/dev/null)" != "oha $oha" ]; then
    step "oha $oha, from crates.io (some minutes)" install_oha || die "oha could not be built"
fi
printf '%s' "$want" >"$stamp"
done_clean=1
