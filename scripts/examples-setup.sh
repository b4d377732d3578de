#!/bin/bash
# Sets up what the larger examples need ("make examples-more"), on Debian 12: Nim, espeak-ng and libaom from Debian's packages, Zig from PyPI.
# What is there is not done again.
#
#   TOOLS=DIR   where Zig goes (default: target/tools)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
tools=${TOOLS:-${CARGO_TARGET_DIR:-$(dirname "$here")/target}/tools}
zig=0.17.1

work=$(mktemp -d "${TMPDIR:-/var/tmp}/vmod-kvm-examples-setup.XXXXXX")
name=examples-setup
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
done_clean=
# shellcheck disable=SC2317 # called by the trap
cleanup() { if [ -n "$done_clean" ]; then rm -rf "$work"; fi; }
trap cleanup EXIT

mkdir -p "$tools"
exec 9>"$tools/lock"
flock 9 # a second set-up at the same time waits here, then finds everything done

need_packages nim libaom-dev libavif-dev libespeak-ng-dev libsonic-dev espeak-ng-data python3-pip

fetch_zig() {
    rm -rf "$tools/zig" && /usr/bin/python3 -m pip install --no-compile --no-deps --target "$tools/zig" "ziglang==$zig"
}
if [ "$("$tools/zig/ziglang/zig" version 2>/dev/null || true)" != "$zig" ]; then
    step "Zig $zig, from PyPI" fetch_zig || die "no Zig"
fi
done_clean=1
