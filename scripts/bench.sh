#!/bin/bash
# The benchmark (docs/performance.md). "make bench" builds the VMOD and calls it.
# Environment: LIB, the folder of the build; GUESTS_DIR, the folder of the example programs; OUT, where the report
# goes; QUICK=1, a short run; ROWS=call,reset,storage,syscalls,memory,fetch,servers,compute,throughput,synth,tail,update, only some of it: then
# only what these rows need is set up and built.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
# shellcheck source=scripts/env.sh
. "$here/env.sh"
lib=${LIB:-$root/target/release}
guests=${GUESTS_DIR:-$root/target/guests}/bench
out=${OUT:-$root/target/bench}
tools=${BENCH_PREFIX:-$(dirname "$VINYL_PREFIX")/bench}/bin
cd "$root"

say() { echo "bench: $*" >&2; }
wants() { [[ -z ${ROWS:-} || ,$ROWS, == *,$1,* ]]; }

# What each row needs: parts of bench-setup.sh, programs, and features beyond what "make build" has built.
parts=(programs) programs=(hello) features=() sqlite=
if wants reset; then programs+=(dirty); fi
if wants fetch; then programs+=(fetch); fi
if wants storage; then programs+=(count); fi
if wants syscalls; then parts+=(syscalls); fi
if wants compute; then
    parts+=(wasm compute)
    for program in mandelbrot sha256 query; do programs+=("$program"{,.native,.wasm}); done
    features+=(forkvm-bench/wasm)
    # The source of SQLite is that of the crate which carries it.
    sqlite=$(cargo metadata --format-version 1 --locked | python3 -c '
import json, os, sys
for p in json.load(sys.stdin)["packages"]:
    if p["name"] == "libsqlite3-sys":
        print(os.path.join(os.path.dirname(p["manifest_path"]), "sqlite3"))')
fi
if wants throughput || wants synth || wants tail || wants update || wants servers; then
    parts+=(load)
fi
if wants servers; then parts+=(nginx pages); fi
if wants throughput || wants tail; then
    parts+=(nginx)
    programs+=(hello.fcgi)
fi
if wants throughput; then
    parts+=(wasm)
    programs+=(hello.cgi hello.wasm)
    features+=(forkvm-bench/wasm forkvm-bench-backends/wasm)
fi

servers=${SERVERS:-${CARGO_TARGET_DIR:-$root/target}/servers}
if wants servers; then SERVERS=$servers "$here/servers-setup.sh"; fi
"$here/bench-setup.sh" "${parts[@]}"
say "the benchmark's programs: ${programs[*]}"
make -s -C benches/guests OUT="$guests" ${sqlite:+"SQLITE=$sqlite"} "${programs[@]/#/$guests/}"
if [ ${#features[@]} -gt 0 ]; then
    say "wasmtime is compiled, which takes some minutes the first time"
    thin=()
    # What only compiles WebAssembly need not be fast itself, and nobody debugs it.
    for package in cranelift-codegen cranelift-frontend regalloc2 wasmtime-internal-cranelift; do
        thin+=(--config "profile.release.package.$package.opt-level=1")
        thin+=(--config "profile.release.package.$package.debug=false")
    done
    cargo build --release --locked -p forkvm-bench -p forkvm-bench-backends \
        --features "$(IFS=,; echo "${features[*]}")" "${thin[@]}"
fi

arguments=(--guests "$guests" --lib "$lib" --tools "$tools" --servers "$servers" --out "$out")
[ -z "${QUICK:-}" ] || arguments+=(--quick)
[ -z "${ROWS:-}" ] || arguments+=(--only "$ROWS")
exec "$lib/forkvm-bench" run "${arguments[@]}"
