#!/bin/bash
# The fuzz targets under libFuzzer ("make fuzz"). Each is a test of its package that bolero runs (crates/forkvm/fuzz/strangers.rs says
# more); here with coverage in its code, for SECONDS_EACH seconds, beginning with its corpus, to which it adds what reaches new
# code. What it fails for is put beside that, in "crashes", where the next "cargo test" finds it.
# Environment: TARGETS, some of them only; SECONDS_EACH (600); MINIMIZE=1 has the corpora made small afterwards.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$(dirname "$here")"
# shellcheck source=scripts/env.sh
. "$here/env.sh"
seconds=${SECONDS_EACH:-600}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/fuzz BOLERO_FUZZER=libfuzzer

# LLVM's coverage (clang's SanitizerCoverage), as libFuzzer reads it.
flags="--cfg fuzzing --cfg fuzzing_libfuzzer -Cpasses=sancov-module"
for flag in inline-8bit-counters level=4 pc-table trace-compares stack-depth; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$flag"
done

# A package's test program, and where its source is.
build() {
    RUSTFLAGS=$flags cargo test --lib --no-run --profile checked --target "$(rustc -vV | sed -n 's/^host: //p')" \
        -p "$1" --message-format=json |
        sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

fuzz() { # program, folder of its package, of the target's file, target
    local folder=$3/__fuzz__/${4//::/__}
    mkdir -p "$folder/corpus" "$folder/crashes"
    echo "fuzz: $4, $seconds s, $(find "$folder/corpus" -type f | wc -l) inputs"
    local common="-artifact_prefix=$folder/crashes/ -timeout=60 -rss_limit_mb=4096 -max_len=8192"
    run() { (cd "$2" && BOLERO_LIBFUZZER_ARGS=$5 "$1" --exact "$4" --nocapture --test-threads=1); }
    run "$@" "$folder/corpus $folder/crashes -max_total_time=$seconds -print_final_stats=1 -verbosity=0 $common"
    if [ -n "${MINIMIZE:-}" ]; then
        local small
        small=$(mktemp -d)
        run "$@" "-merge=1 -verbosity=0 $common $small $folder/corpus"
        rm -r "$folder/corpus"
        mv "$small" "$folder/corpus"
        chmod 755 "$folder/corpus"
    fi
    rmdir --ignore-fail-on-non-empty "$folder/crashes"
}

wanted() { [[ -z ${TARGETS:-} || " $TARGETS " == *" ${1##*::} "* ]]; }

# Of a package, where its folder is, and its targets, each after the folder of its file.
package() { # name, folder, then folder:target
    local name=$1 package=$2 program= target
    shift 2
    for target; do
        if wanted "${target#*=}"; then
            if [ -z "$program" ]; then program=$(build "$name"); fi
            fuzz "$program" "$package" "$package/${target%%=*}" "${target#*=}"
        fi
    done
}

package forkvm "$PWD/crates/forkvm" fuzz=fuzz::{programs,headers,responses,system_calls} fuzz=fork::tests::fuzz::hypercalls
package vmod_kvm "$PWD" src/tenants=tenants::fuzz::{documents,keys,hosts} src/tenants=tenants::archive::tests::archives
