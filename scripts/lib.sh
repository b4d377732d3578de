# shellcheck shell=bash
# What the set-up scripts share: progress lines, packages, a private apt.
# The script that sources it sets $name (for messages) and $work (a temporary
# folder; logs go there).
# shellcheck disable=SC2154

die() {
    echo "$name: error: $*" >&2
    exit 1
}

# step TEXT COMMAND...: one line of progress; the command's output goes to a log,
# whose end is shown if it fails. Returns the command's success. Functions given
# to it chain their commands with "&&", since "set -e" does not hold in a condition.
step() {
    local text=$1 log t0=$SECONDS
    shift
    log=$work/$(printf %s "$text" | tr -cs 'A-Za-z0-9.' '-').log
    printf '%s: %-52s ' "$name" "$text"
    if ("$@") >"$log" 2>&1 </dev/null; then
        echo "ok  $((SECONDS - t0)) s"
        return 0
    fi
    echo failed
    tail -n 5 "$log" | sed 's/^/    | /'
    echo "    full log: $log"
    return 1
}

# need_packages PACKAGE...: installs those that are missing, or says how to.
need_packages() {
    local p sudo='' missing=()
    for p in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        sudo="sudo -n"
        if ! $sudo true 2>/dev/null; then
            rmdir "$work" 2>/dev/null || true
            die "installing packages needs root. Please run, then try again:

  sudo apt-get install -y --no-install-recommends ${missing[*]}
"
        fi
    fi
    step "${#missing[@]} Debian packages" install_packages "${missing[@]}" ||
        die "packages could not be installed: ${missing[*]}"
}

install_packages() {
    # An unrelated source of this machine may be out of reach; install decides.
    $sudo apt-get -q update || echo "warning: apt-get update was not complete"
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get -q install -y --no-install-recommends "$@"
}

# The Debian mirror that this machine uses.
debian_mirror() {
    local m
    m=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
    [ -n "$m" ] || m=$(sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
    echo "${m:-http://deb.debian.org/debian}"
}

# private_apt_lists SUITE...: package lists of other suites, in a private apt
# state: the machine's own lists and sources stay as they are. Needs no root.
private_apt_lists() {
    local key=/usr/share/keyrings/debian-archive-keyring.gpg mirror suite t
    mirror=$(debian_mirror)
    mkdir -p "$work"/apt/{lists,cache/archives}/partial || return
    for suite in "$@"; do
        for t in deb deb-src; do
            echo "$t [signed-by=$key] $mirror $suite main"
        done
    done >"$work/apt/sources.list"
    private_apt apt-get -q update --error-on=any
}

# private_apt apt-get|apt-cache ARG...
private_apt() {
    local program=$1
    shift
    "$program" -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" \
        -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=2 \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}
