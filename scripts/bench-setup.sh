#!/bin/bash
# Sets up what "make bench" needs beside scripts/setup.sh, on Debian 12, and of
# that only the parts that are named; what is there is not done again:
#
#   programs   clang, which the benchmark's programs are compiled by
#   wasm       a compiler for WebAssembly
#   compute    headers of the compute row's programs
#   syscalls   strace
#   load       oha, in a folder of its own
#   nginx      nginx and fcgiwrap, in that folder too, and FastCGI's library
#   pages      what the pages in Node and Deno need, out of npm's registry, in benches/pages
#
#   BENCH_PREFIX=DIR   the folder (default: "bench" beside VINYL_PREFIX)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/env.sh
. "$here/env.sh"

prefix=${BENCH_PREFIX:-$(dirname "$VINYL_PREFIX")/bench}
oha=1.16.0

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
    servers_run
}

servers_run() { "$prefix/bin/nginx" -V -e stderr && "$prefix/bin/fcgiwrap" -h; }

# Cargo shows its own progress. (Without its TLS oha does not compile.)
install_oha() {
    echo "$name: oha $oha, from crates.io (some minutes)"
    cargo install oha --version "$oha" --locked --root "$prefix" --target-dir "$work/oha"
}

pages=$(dirname "$here")/benches/pages
# isolated-vm is compiled, by Node's own headers: there may be no way to where it would fetch them.
install_pages() {
    cd "$pages" && npm ci --no-audit --no-fund --nodedir="$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")" &&
        node --no-node-snapshot -e 'import("isolated-vm").then((ivm) => new ivm.default.Isolate())' || return
    local page
    for page in hello react; do
        node_modules/.bin/esbuild "$page.mjs" --bundle --format=iife --global-name=page --outfile="bundles/$page.js" \
            --alias:react-dom/server=./node_modules/react-dom/cjs/react-dom-server-legacy.browser.production.js \
            --define:process.env.NODE_ENV='"production"' || return
    done
}

for part in "$@"; do
    case $part in
    programs) need_packages clang ;;
    wasm) need_packages lld wasi-libc libclang-rt-14-dev-wasm32 ;;
    compute) need_packages libstb-dev ;;
    syscalls) need_packages strace ;;
    load)
        if [ "$("$prefix/bin/oha" --version 2>/dev/null)" != "oha $oha" ]; then
            install_oha || die "oha could not be built"
        fi
        ;;
    nginx)
        need_packages libfcgi-dev libcrypt1 libpcre2-8-0 libssl3 zlib1g
        if ! servers_run >/dev/null 2>&1; then
            step "nginx and fcgiwrap into $prefix" unpack_servers || die "nginx and fcgiwrap could not be had"
        fi
        ;;
    pages)
        command -v node >/dev/null || need_packages nodejs libnode-dev
        command -v npm >/dev/null || need_packages npm
        if [ ! "$pages/bundles/react.js" -nt "$pages/react.mjs" ] || [ ! "$pages/bundles/react.js" -nt "$pages/package-lock.json" ]; then
            step "React and isolated-vm, from npm" install_pages || die "the pages could not be had"
        fi
        ;;
    *) die "there is no part $part" ;;
    esac
done
done_clean=1
