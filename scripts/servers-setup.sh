#!/bin/bash
# Sets up the servers that docs/programs.md lists, for "make test-servers", on Debian 12: from Debian's packages, npm and
# crates.io. What is there is not done again.
#
#   SERVERS=DIR   where they go (default: target/servers); their commands are in DIR/bin
#
# nginx and lighttpd are taken out of their packages: installed, they would be started on this machine.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
sources=$(dirname "$here")/tests/servers
servers=${SERVERS:-${CARGO_TARGET_DIR:-$(dirname "$here")/target}/servers}
deno=2.9.6

work=$(mktemp -d "${TMPDIR:-/var/tmp}/vmod-kvm-servers-setup.XXXXXX")
name=servers-setup
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
done_clean=
# shellcheck disable=SC2317 # called by the trap
cleanup() { if [ -n "$done_clean" ]; then rm -rf "$work"; fi; }
trap cleanup EXIT

mkdir -p "$servers/bin"
servers=$(readlink -f "$servers")
exec 9>"$servers/lock"
flock 9 # a second set-up at the same time waits here, then finds everything done

packages="
    python3 gunicorn python3-waitress python3-uvicorn
    chromium chromium-driver
    golang-go php-cli ruby ruby-webrick busybox openjdk-17-jdk-headless
    libcrypt1 libnettle8 libpcre2-8-0 libssl3 libxxhash0 zlib1g"
command -v node >/dev/null || packages="$packages nodejs"
command -v npm >/dev/null || packages="$packages npm"
# shellcheck disable=SC2086 # a list of words
need_packages $packages

# older FILE SOURCE...: true if it has to be made (again).
older() {
    local file=$1 source
    shift
    [ -e "$file" ] || return 0
    for source in "$@"; do
        [ ! "$source" -nt "$file" ] || return 0
    done
    return 1
}

unpack() {
    cd "$work" && apt-get -q download "$1" && dpkg-deb -x "$work/$1"_*.deb "$servers/$1" &&
        ln -sf "../$1/usr/sbin/$1" "$servers/bin/$1"
}
for package in nginx lighttpd; do
    [ -x "$servers/bin/$package" ] || step "$package, out of its package" unpack "$package" || die "no $package"
done

fetch_deno() {
    npm install --no-audit --no-fund --ignore-scripts --prefix "$servers" "deno@$deno" &&
        ln -sf ../node_modules/@deno/linux-x64-glibc/deno "$servers/bin/deno"
}
case $("$servers/bin/deno" --version 2>/dev/null || true) in
"deno $deno "*) ;;
*) step "Deno $deno, from npm" fetch_deno || die "no Deno" ;;
esac

# The folder of an application: what it runs of, the browser's part in one file, and the packages that Deno has fetched for it.
build_react() {
    local build=$servers/react-build app=$servers/react
    rm -rf "$build" "$app"
    mkdir -p "$build" "$app" && cp "$sources"/react/* "$build" && cd "$build" &&
        cp app.js server.js deno.json "$app" &&
        npm ci --no-audit --no-fund --ignore-scripts &&
        node_modules/.bin/esbuild client.js --bundle --minify '--define:process.env.NODE_ENV="production"' \
            --outfile="$app/client.bundle.js" &&
        cd "$app" && DENO_DIR=$app/deno-dir DENO_NO_UPDATE_CHECK=1 "$servers/bin/deno" cache server.js
}
if older "$servers/react/deno.lock" "$sources"/react/*; then
    step "the page with React, from npm" build_react || die "no page with React"
fi

build_go() { cd "$sources" && GOCACHE=$work/go go build -o "$servers/bin/$1" "$2"; }
build_std() { rustc --edition 2024 -O -o "$servers/bin/std-server" "$sources/std.rs"; }
build_java() { javac --release 17 -d "$servers/java" "$sources"/{Server,Entropy}.java; }
build_axum() {
    cd "$sources/axum" && cargo build --locked --release --target-dir "$servers/axum" &&
        cp "$servers/axum/release/axum-server" "$servers/bin/"
}
if older "$servers/bin/go-server" "$sources/main.go"; then
    step "the server in Go" build_go go-server main.go || die "no server in Go"
fi
if older "$servers/bin/go-entropy" "$sources/entropy/main.go"; then
    step "the other server in Go" build_go go-entropy entropy/main.go || die "no other server in Go"
fi
if older "$servers/bin/std-server" "$sources/std.rs"; then
    step "the server in Rust" build_std || die "no server in Rust"
fi
if older "$servers/java/Server.class" "$sources/Server.java" || older "$servers/java/Entropy.class" "$sources/Entropy.java"; then
    step "the servers in Java" build_java || die "no servers in Java"
fi
if older "$servers/bin/axum-server" "$sources"/axum/{Cargo.lock,src/main.rs}; then
    step "the server with axum, from crates.io" build_axum || die "no server with axum"
fi
done_clean=1
