#!/bin/bash
# Builds a C or C++ program for a tenant and uploads it to a running Varnish.
#
#   build_and_upload.sh [OPTIONS] TENANT SOURCE [-- SOURCE|FLAG...]
#
#   build_and_upload.sh xpizza.com examples/png.c
#   build_and_upload.sh -u http://node1 -u http://node2 xpizza.com main.c -- util.c -O3 -lz
#
#   -u, --url URL        a node, such as http://127.0.0.1:8080; may be given several times
#   -k, --key-file FILE  the tenant's update key
#   -o, --output FILE    keep the program there
#   -n, --no-upload      only build it (with --output)
#   -h, --help           this text
#
# Sources are looked for here, then beside this script. What comes after -- goes to the compiler: more sources,
# objects, flags. Libraries may also be named in a source's first lines, as in "// LDLIBS: -lpng16 -lz".
#
# Environment: URL (one or several, with spaces between), KEY_FILE, CC, CXX, CFLAGS, CXXFLAGS, FORKVM (the command).
# The exit status is that of "forkvm upload"; 1 if the program can't be built, 2 for wrong arguments.
set -euo pipefail
sdk=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

die() {
    echo "build_and_upload: $1" >&2
    exit "${2:-1}"
}
usage() {
    die "$1; --help tells more" 2
}

# --- what is asked for --------------------------------------------------------

urls=() key_file=${KEY_FILE:-} output='' upload=1 words=() more=()
while [ $# -gt 0 ]; do
    case $1 in
    -u | --url | -k | --key-file | -o | --output)
        [ $# -ge 2 ] || usage "$1 needs a value"
        case $1 in
        -u | --url) urls+=("$2") ;;
        -k | --key-file) key_file=$2 ;;
        -o | --output) output=$2 ;;
        esac
        shift
        ;;
    -n | --no-upload) upload='' ;;
    -h | --help)
        sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --)
        shift
        more=("$@")
        break
        ;;
    -*) usage "there is no option $1" ;;
    *) words+=("$1") ;;
    esac
    shift
done
[ ${#words[@]} = 2 ] || usage "what is wanted: TENANT SOURCE [-- SOURCE|FLAG...]"
[ -n "$upload" ] || [ -n "$output" ] || usage "--no-upload needs --output"
tenant=${words[0]}
if [ ${#urls[@]} = 0 ]; then
    read -ra urls <<<"${URL:-http://127.0.0.1:8080}" || true
fi

is_source() {
    case $1 in
    *.c | *.cc | *.cpp | *.cxx | *.C) ;;
    *) return 1 ;;
    esac
}

# find_source FILE: its path, from here or from the SDK's folder.
find_source() {
    local path
    for path in "$1" "$sdk/$1"; do
        if [ -f "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
    die "there is no $1, neither here nor in $sdk"
}

is_source "${words[1]}" ||
    usage "${words[1]} is no C or C++ source (.c, .cc, .cpp, .cxx); TENANT comes first, then SOURCE"
source=$(find_source "${words[1]}")
sources=("$source") flags=()
for word in ${more[@]+"${more[@]}"}; do
    if is_source "$word" && [ "${word#-}" = "$word" ]; then
        found=$(find_source "$word")
        sources+=("$found")
    else
        flags+=("$word")
    fi
done

# --- what is needed -----------------------------------------------------------

forkvm=${FORKVM:-}
if [ -n "$upload" ]; then
    for candidate in forkvm "${CARGO_TARGET_DIR:-$sdk/../target}/release/forkvm"; do
        [ -n "$forkvm" ] || forkvm=$(command -v "$candidate") || true
    done
    command -v "${forkvm:-none}" >/dev/null || die "there is no command ${forkvm:-forkvm}; build it with:
    make -C $(readlink -f "$sdk/..") build
  or, without Varnish: cargo build --release -p forkvm-cli"
    [ -z "$key_file" ] || [ -r "$key_file" ] || die "the key file $key_file is not there, or not for you to read"
fi

# --- the program --------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/build_and_upload.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# compiler SOURCE: the command for it, in $compiler.
compiler() {
    local cc cxx
    read -ra cc <<<"${CC:-gcc} -std=gnu11 ${CFLAGS:--O2 -g -Wall}"
    read -ra cxx <<<"${CXX:-g++} -std=gnu++17 ${CXXFLAGS:-${CFLAGS:--O2 -g -Wall}}"
    case $1 in
    *.c) compiler=("${cc[@]}") ;;
    *) compiler=("${cxx[@]}") ;;
    esac
    command -v "${compiler[0]}" >/dev/null ||
        die "there is no compiler ${compiler[0]}; install gcc and g++, or set CC and CXX"
}

# Static, since there is no dynamic linker in the guest. Libraries and objects are the linker's.
static=-static compile_flags=()
for flag in ${flags[@]+"${flags[@]}"}; do
    case $flag in
    -l* | -L* | -Wl,* | *.o | *.a) ;;
    -static-pie) static=-static-pie compile_flags+=(-fPIE) ;;
    *) compile_flags+=("$flag") ;;
    esac
done

objects=() libraries=() linker=()
for source in "${sources[@]}"; do
    compiler "$source"
    # C++ needs its own driver to be linked.
    [ ${#linker[@]} != 0 ] && [ "${source%.c}" != "$source" ] || linker=("${compiler[@]}")
    object=$work/${#objects[@]}.o
    "${compiler[@]}" -I "$sdk/c" -c -o "$object" ${compile_flags[@]+"${compile_flags[@]}"} "$source" ||
        die "$source does not compile"
    objects+=("$object")
    read -ra named <<<"$(sed -nE '1,20s#^ *(//|/?\*) *LDLIBS: *([^*]*).*#\2#p' "$source")" || true
    for library in ${named[@]+"${named[@]}"}; do
        case $library in
        -l*) libraries+=("$library") ;;
        *) die "$source: LDLIBS names libraries, each as -lNAME; $library is none" ;;
        esac
    done
done
program=$work/$(basename "${sources[0]%.*}")
"${linker[@]}" "$static" -o "$program" "${objects[@]}" ${flags[@]+"${flags[@]}"} ${libraries[@]+"${libraries[@]}"} ||
    die "the program can't be linked; static libraries are in Debian's packages named lib...-dev"
if [ -n "$output" ]; then
    cp "$program" "$output" || die "can't write $output"
fi
[ -n "$upload" ] || exit 0

# --- the upload ---------------------------------------------------------------

arguments=(--tenant "$tenant")
for url in "${urls[@]}"; do arguments+=(--url "$url"); done
[ -z "$key_file" ] || arguments+=(--key-file "$key_file")
"$forkvm" upload "${arguments[@]}" "$program"
