#!/bin/bash
# Sets up what scripts/conformance.py runs (make test-conformance), from Debian 12's packages: CPython with its test suite,
# unpacked beside everything else, and the tests of Go's packages, built. When everything is there it does nothing.
#
#   CONFORMANCE=DIR   where to (default target/conformance)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
prefix=${CONFORMANCE:-$here/../target/conformance}
mkdir -p "$prefix"
prefix=$(readlink -f "$prefix")
# Raise the number when what is set up changes.
want="recipe 2"
if [ "$(cat "$prefix/.stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/vmod-kvm-conformance.XXXXXX")
name=conformance-setup
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
# shellcheck disable=SC2317 # called by the trap
cleanup() { if [ -n "${done_clean:-}" ]; then rm -rf "$work"; fi; }
trap cleanup EXIT
exec 9>"$prefix.lock"
flock 9 # a second set-up at the same time waits here

need_packages golang-1.19-go golang-1.19-src python3

# The interpreter and its tests have to be of one version, which need not be the installed one's.
unpack_python() {
    private_apt_lists bookworm && cd "$work" &&
        private_apt apt-get -q download python3.11-minimal libpython3.11-{minimal,stdlib,testsuite} || return
    local f
    for f in "$work"/*python3.11*.deb; do dpkg-deb -x "$f" "$prefix/python" || return; done
    # So that a run does not compile each module anew.
    "$prefix/python/usr/bin/python3.11" -m compileall -q "$prefix/python/usr/lib/python3.11" >/dev/null || true
    "$prefix/python/usr/bin/python3.11" -c 'import ssl, sqlite3, test.test_os'
}

build_go() {
    mkdir -p "$prefix/go" && cd /usr/share/go-1.19/src || return
    local package
    while read -r package; do
        GOCACHE=$prefix/go-cache GOFLAGS=-buildvcs=false /usr/lib/go-1.19/bin/go test -c -tags=timetzdata \
            -o "$prefix/go/${package//\//_}.test" "$package" || return
    done <"$here/../tests/conformance/go.units"
    rm -rf "$prefix/go-cache"
}

step "CPython 3.11 and its test suite" unpack_python || die "CPython's tests could not be set up"
step "tests of Go's packages" build_go || die "Go's tests could not be built"
printf '%s' "$want" >"$prefix/.stamp"
done_clean=1
