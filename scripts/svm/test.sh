#!/bin/bash
# The engine's tests on a stock kernel's kvm_amd ("make test-svm"), and those that compare
# unmodified programs in the machine with what they do without it: everything is built out
# here, then all test programs run in two machines at once, one with nested paging and one
# with shadow paging.
#   NPT=1|0            only this one
#   FORKVM_SLOW=50     by how much the tests stretch their time limits
#   FORKVM_FROZEN=150  how many seconds after the freeze clocks are looked at
#   ONLY=NAME          only tests with this in their names
#   GUESTS_DIR=DIR     the guest programs (default: target/guests)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$(dirname "$here")")
# shellcheck source=scripts/env.sh
. "$here/../env.sh"

if [ "${1:-}" = --inside ]; then
    # In the machine: PROGRAM... One after the other, each with its own verdict. And
    # one test after the other, since its emulated CPUs take turns in one thread.
    shift
    # A tmpfs, which has what an old kernel's overlay lacks: O_TMPFILE, and RWF_APPEND.
    export TMPDIR=/dev/shm
    passed=0 failed=()
    for program in "$@"; do
        echo "--- $(basename "$program")"
        if "$program" --test-threads=1 ${ONLY:+"$ONLY"}; then passed=$((passed + 1)); else failed+=("$(basename "$program")"); fi
    done
    if [ ${#failed[@]} -gt 0 ]; then echo "test programs failed: ${failed[*]}"; fi
    echo "test programs: $passed passed, ${#failed[@]} failed"
    [ ${#failed[@]} = 0 ]
    exit
fi

"$here/build.sh"
cd "$root"
# built CARGO-ARGUMENT...: the test programs that cargo makes, a line each.
built() {
    cargo test --release --no-run --message-format json-render-diagnostics "$@" | python3 -c '
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if m["reason"] == "compiler-artifact" and m["profile"]["test"] and m["executable"]:
        print(m["executable"])'
}
alike=$(built -p forkvm-cli --test alike)
mapfile -t programs < <(echo "$alike" && built -p forkvm-cli --test exec && built -p forkvm)
[ -n "$alike" ] && [ ${#programs[@]} -gt 2 ] || { echo "test-svm: no test programs were built" >&2; exit 1; }

# What cargo would set for them. CI: without /dev/kvm they fail, not skip.
export CI=true FORKVM_SLOW=${FORKVM_SLOW:-50} FORKVM_FROZEN=${FORKVM_FROZEN:-150} ONLY=${ONLY:-} CARGO_MANIFEST_DIR=$root/crates/forkvm RUST_BACKTRACE=1
export GUESTS_DIR=${GUESTS_DIR:-$root/target/guests}
cd "$CARGO_MANIFEST_DIR"
# What programs do without a machine is this kernel's to say, not the older one's in there.
FORKVM_NATIVES=$(mktemp -d "${TMPDIR:-/var/tmp}/vmod-kvm-natives.XXXXXX")
export FORKVM_NATIVES
trap 'rm -rf "$FORKVM_NATIVES"' EXIT
FORKVM_NOTE_NATIVES=$FORKVM_NATIVES "$alike" --quiet
# Both machines at once, since each has one of the host's processors to itself. Each is a
# job with a process group of its own, so that one signal ends all of it.
set -m
status=0 machines=() kinds=()
trap 'kill -- "${machines[@]/#/-}" 2>/dev/null || :; wait; rm -rf "$FORKVM_NATIVES"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for npt in ${NPT:-1 0}; do
    echo "=== Linux ${SVM_KERNEL:-6.1}, kvm_amd npt=$npt, ${#programs[@]} test programs"
    {
        "$here/run.sh" -t "${SVM_LIMIT:-3600}" -k "npt=$npt" -- "$here/test.sh" --inside "${programs[@]}" 2>&1 |
            sed -u "s/^/npt=$npt | /"
    } &
    machines+=($!) kinds+=("npt=$npt")
done
for i in "${!machines[@]}"; do
    wait "${machines[i]}" || {
        status=$?
        echo "test-svm: failed with ${kinds[i]} ($status)" >&2
    }
done
machines=()
exit $status
