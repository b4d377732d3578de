#!/bin/bash
# The demo: Varnish on 127.0.0.1:${PORT:-8080} with seven tenants (vcl/demo.vcl), and
# beside it an unmodified server in Python, until Ctrl-C. "make demo" builds what it needs and calls it.
#   --check   on a free port; checks every answer, then ends with a status
# Environment: LIB, the folder of libvmod_kvm.so and forkvm; GUESTS_DIR, that of the example programs.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
# shellcheck source=scripts/env.sh
. "$here/env.sh"
lib=${LIB:-$root/target/release}
guests=${GUESTS_DIR:-$root/target/guests}
port=${PORT:-8080}
check=
case ${1:-} in
--check) check=1 port=0 ;;
'') ;;
*) sed -n '2,5s/^# //p' "$0"; exit 2 ;;
esac
die() { echo "demo: $*" >&2; exit 1; }

# --- what must be there ------------------------------------------------------

if [ ! -e /dev/kvm ]; then
    die "there is no /dev/kvm. Load the kernel's module (sudo modprobe kvm_intel, or kvm_amd);
  if that fails, switch virtualisation on in the BIOS or, in a virtual machine, allow it nested virtualisation."
fi
if ! (: <>/dev/kvm) 2>/dev/null; then
    group=$(stat -c %G /dev/kvm)
    if [ "$group" = root ]; then
        die "$(id -un) may not use /dev/kvm, which is root's alone here. Run the demo as root, or give the device
  to the group kvm and yourself that group, then log in again:
    sudo groupadd -f kvm; sudo chgrp kvm /dev/kvm; sudo chmod 660 /dev/kvm; sudo usermod -aG kvm $(id -un)"
    fi
    die "$(id -un) may not use /dev/kvm. Members of the group $group may; join it, then log in again:
    sudo usermod -aG $group $(id -un)"
fi
for f in libvmod_kvm.so forkvm; do
    [ -e "$lib/$f" ] || die "no $lib/$f; run: make build"
done
for g in page hello mandelbrot counter sqlite crash live live-2; do
    [ -x "$guests/$g" ] || die "no $guests/$g; run: make guests"
done
if [ "$port" != 0 ]; then
    why=$(python3 - "$port" 2>&1 <<'PY'
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    s.bind(("127.0.0.1", int(sys.argv[1])))
except (OSError, OverflowError, ValueError) as e:
    sys.exit(getattr(e, "strerror", None) or str(e))
PY
    ) || die "cannot listen on 127.0.0.1:$port ($why). Take another port: make demo PORT=8081"
fi

# --- Varnish -----------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/vmod-kvm-demo.XXXXXX")
varnish='' serving=''
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    if [ -n "$serving" ]; then
        kill "$serving" 2>/dev/null || true
        wait "$serving" 2>/dev/null || true
    fi
    if [ -n "$varnish" ]; then
        # A worker thread keeps its VCL for up to a minute after its last request,
        # and a polite stop waits for that: two seconds of it are enough here.
        local child
        child=$(pgrep -P "$varnish" || true)
        kill "$varnish" 2>/dev/null || true
        for _ in {1..20}; do
            kill -0 "$varnish" 2>/dev/null || break
            sleep 0.1
        done
        if [ -n "$child" ]; then kill -KILL "$child" 2>/dev/null || true; fi
        wait "$varnish" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'echo; echo "demo: stopped"; exit 0' INT
trap 'exit 143' TERM HUP

# As root, Varnish would give its child process to the user "vcache" (or "vinyl")
# where there is one, who is seldom in the group of /dev/kvm; and it stays root
# where there is none. The demo is the same everywhere: it stays root.
jail=()
if [ "$(id -u)" = 0 ]; then
    jail=(-j none)
    echo "demo: Varnish runs as root, since you are root and only users set up for it may use /dev/kvm." \
        "In production, give Varnish's user the group instead (usermod -aG kvm vcache)."
else
    echo "demo: Varnish runs as $(id -un), who may use /dev/kvm. Nothing in the demo needs root."
fi

mkdir -m 700 "$work/state"
sed "s#@GUESTS@#$guests#; s#@STATE@#$work/state#" "$root/vcl/demo.vcl" >"$work/demo.vcl"
# The demo's VMOD by its folder, Varnish's own by theirs. setpriv: should this
# script be killed the hard way, Varnish ends too.
setpriv --pdeathsig TERM "$VARNISHD" -F ${jail[@]+"${jail[@]}"} -n "$work/varnish" -a "127.0.0.1:$port" \
    -p "vmod_path=$lib:$(pkg-config --variable=vmoddir varnishapi)" -s malloc,64m \
    -f "$work/demo.vcl" >"$work/varnishd.log" 2>&1 </dev/null &
varnish=$!

# alive: fails with Varnish's own words when it has ended.
alive() {
    if ! kill -0 "$varnish" 2>/dev/null; then
        cat "$work/varnishd.log" >&2
        varnish=
        die "Varnish ended"
    fi
}

listen=
for _ in {1..600}; do
    listen=$(varnishadm -n "$work/varnish" -t 2 debug.listen_address 2>/dev/null | awk 'NF {print $2 ":" $3; exit}') || true
    [ -z "$listen" ] || break
    alive
    sleep 0.1
done
[ -n "$listen" ] || { cat "$work/varnishd.log" >&2; die "Varnish did not start within a minute"; }

# get HOST PATH [CURL'S ARGUMENTS]: a request; the status in $status, files head and body. base=ADDRESS: to another server.
get() {
    status=$(curl -sS -m 20 "${@:3}" -D "$work/head" -o "$work/body" -w '%{http_code}' -H "Host: $1" "http://${base:-$listen}$2") || status=000
}

tenants=(tpizza.com upizza.com vpizza.com wpizza.com xpizza.com ypizza.com zpizza.com)
deadline=$((SECONDS + 60))
for t in "${tenants[@]}"; do
    url=/
    [ "$t" != tpizza.com ] || url=/ok
    until get "$t" $url && [ "$status" = 200 ]; do
        alive
        if [ $SECONDS -ge $deadline ]; then
            cat "$work/varnishd.log" >&2
            varnishlog -n "$work/varnish" -d -g raw -i Error,VCL_Error,VCL_Log,FetchError 2>/dev/null | tail -n 20 >&2 || true
            die "$t is not ready after 60 s; its last answer was ${status/000/none}"
        fi
        sleep 0.2
    done
done

# --- an unmodified server ----------------------------------------------------

python=/usr/bin/python3 server=
if [ -x $python ]; then
    setpriv --pdeathsig TERM "$lib/forkvm" serve -l 127.0.0.1:0 --cwd "$here" --allow-read="$here/demo-server.py" -- \
        $python demo-server.py >"$work/server.log" 2>&1 </dev/null &
    serving=$!
    deadline=$((SECONDS + 60))
    until server=$(sed -n 's/^forkvm: ready.* listening on //p' "$work/server.log") && [ -n "$server" ]; do
        if ! kill -0 "$serving" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
            cat "$work/server.log" >&2
            die "the server in Python does not serve"
        fi
        sleep 0.1
    done
else
    echo "demo: SKIPPED, an unmodified server in Python: there is no $python"
fi

# --- the answers -------------------------------------------------------------

show() {
    get "$1" /
    if [ -n "${base:-}" ]; then
        printf '\n$ curl -D - http://%s/\n' "$base"
    else
        printf '\n$ curl -D - -H "Host: %s" http://%s/\n' "$1" "$listen"
    fi
    cat "$work/head"
    if grep -qi '^content-type: *text/' "$work/head"; then
        head -n 8 "$work/body" | cut -c 1-110 | awk 1 # which adds a last newline if there is none
        [ "$(wc -l <"$work/body")" -le 8 ] || echo "..."
    else
        echo "<$(stat -c %s "$work/body") bytes of $(sed -n 's/\r$//; s/^content-type: *//Ip' "$work/head")>"
    fi
}

for t in "${tenants[@]:2}"; do show "$t"; done
[ -z "$server" ] || base=$server show "$server"

if [ -z "$check" ]; then
    cat <<END

Ready. In a browser:
  http://$listen/      vpizza.com, a page that links to the others
  http://$listen/w/    wpizza.com, hello           http://$listen/x/    xpizza.com, a picture for each URL
  http://$listen/y/    ypizza.com, a counter       http://$listen/z/    zpizza.com, a database in memory
  http://$listen/u/    upizza.com, crash a program, and update one while it serves
${server:+Without Varnish, each connection in a fork of an unmodified server in Python:
  http://$server/
}The log: varnishlog -n $work/varnish    (with: . scripts/env.sh)
Ctrl-C ends it.
END
    rc=0
    wait "$varnish" || rc=$?
    cat "$work/varnishd.log" >&2
    varnish=
    die "Varnish ended ($rc)"
fi

failed=0 passed=0
# expect TEXT COMMAND...
expect() {
    local text=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "demo-check: FAILED: $text"
        sed 's/^/    | /' "$work/head"
        head -c 300 "$work/body" | tr -c '[:print:]\n' '?' | sed 's/^/    | /'
    fi
}
has() { [ "$status" = 200 ] && grep -qi "^content-type: *$1" "$work/head" && grep -qai -e "$2" "$work/body"; }
png() { [ "$status" = 200 ] && grep -qi '^content-type: *image/png' "$work/head" && python3 "$here/check-png.py" "$work/body"; }

echo
get vpizza.com / && expect "vpizza.com: an HTML page" has text/html '<html'
get "$listen" / && expect "the address alone: the page of vpizza.com" has text/html '<html'
get wpizza.com / && expect "wpizza.com: hello" has text/ hello
get "$listen" /w && expect "/w: hello" has text/ hello
get xpizza.com / && expect "xpizza.com: a PNG" png
get "$listen" "/x/?zoom=60&size=64" && expect "/x/: a PNG" png
for i in {1..3}; do
    get ypizza.com / && expect "ypizza.com: the counter says 1, request $i" has text/ '^1$'
done
get "$listen" /y/ && expect "/y/: the counter says 1" has text/ '^1$'
get zpizza.com / && expect "zpizza.com: its help" has text/ menu
get zpizza.com /count && expect "zpizza.com: rows in the database" has application/json '[1-9]'
get "$listen" "/z/?q=ham" && expect "/z/?q=ham: a search" has application/json ham
get zpizza.com "/order?id=7&name=Ann" && cp "$work/body" "$work/first"
get zpizza.com "/order?id=7&name=Bob" && expect "zpizza.com: a second order finds no first" cmp "$work/first" "$work/body"
get "$listen" /u/ && expect "/u/: a page by version 1" has text/html 'Version 1</b>'
version=$(sha256sum "$guests/live")
expect "/u/: which program made it" has text/html "<code>${version:0:12}</code>"
get "$listen" /u/rollback -X POST && expect "/u/rollback: nothing to go back to" [ "$status" = 409 ]
get "$listen" /u/update -X POST && cp "$work/head" "$work/updated" && expect "/u/update: see the page" [ "$status" = 303 ]
location=$(sed -n 's/\r$//; s/^location: *//Ip' "$work/updated")
get "$listen" "$location" && expect "$location: a page by version 2" has text/html 'Version 2</b>'
expect "$location: what ran before" has text/html "took the place of <code>${version:0:12}</code>"
get upizza.com /rollback -X POST && expect "upizza.com/rollback: see the page" [ "$status" = 303 ]
get upizza.com / && expect "upizza.com: version 1 again" has text/html 'Version 1</b>'
for u in null-write stack-overflow loop; do
    get "$listen" /t/$u && expect "/t/$u: a plain 500" [ "$status" = 500 ]
done
get "$listen" /t/ok && expect "/t/ok: an answer after them" [ "$status" = 200 ]
for u in /nowhere /w/nowhere /x/1 /y/x /z/nowhere /u/x /t/nowhere /favicon.ico; do
    get "$listen" $u && expect "$u: 404" [ "$status" = 404 ]
done
get nobody.example / && expect "an unknown tenant: 404" [ "$status" = 404 ]

if [ -n "$server" ]; then
    for i in {1..3}; do
        base=$server get "$server" / && expect "$python: its counter says 1, connection $i" has text/ '^Request 1 of Python 3'
    done
fi

# What is installed, with a tenant whose program does not boot.
echo "no program" >"$work/text"
cat >"$work/site.vcl" <<END
vcl 4.1;
include "$root/vcl/kvm.vcl";
sub vcl_init {
    kvm.tenant("good.example", "$guests/hello");
    kvm.tenant("bad.example", "$work/text");
}
END
if ! varnishadm -n "$work/varnish" -t 60 vcl.load site "$work/site.vcl" || ! varnishadm -n "$work/varnish" vcl.use site; then
    die "vcl/kvm.vcl does not load"
fi
get good.example / && expect "kvm.vcl, a tenant: 200" [ "$status" = 200 ]
get bad.example / && expect "kvm.vcl, a program that does not boot: 503" [ "$status" = 503 ]
get nobody.example / && expect "kvm.vcl, an unknown host: 404" [ "$status" = 404 ]
echo "demo-check: $passed passed, $failed failed"
[ $failed = 0 ]
