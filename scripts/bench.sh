#!/bin/bash
# The benchmark (docs/performance.md). "make bench" builds the rest and calls it.
# Environment: LIB, the folder of the build; GUESTS_DIR, the folder of the example programs; OUT, where the report
# goes; QUICK=1, a short run; ROWS=call,reset,syscalls,memory,compute,throughput,tail,update, only some of it.
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

"$here/bench-setup.sh"
# The source of SQLite is that of the crate which carries it.
sqlite=$(cargo metadata --format-version 1 --locked | python3 -c '
import json, os, sys
for p in json.load(sys.stdin)["packages"]:
    if p["name"] == "libsqlite3-sys":
        print(os.path.join(os.path.dirname(p["manifest_path"]), "sqlite3"))')
make -s -C benches/guests OUT="$guests" SQLITE="$sqlite"
cargo build --release --locked -p forkvm-bench -p forkvm-bench-backends \
    --features forkvm-bench/wasm,forkvm-bench-backends/wasm

arguments=(--guests "$guests" --lib "$lib" --tools "$tools" --out "$out")
[ -z "${QUICK:-}" ] || arguments+=(--quick)
[ -z "${ROWS:-}" ] || arguments+=(--only "$ROWS")
exec "$lib/forkvm-bench" run "${arguments[@]}"
