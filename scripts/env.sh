# shellcheck shell=sh
# Environment for building against and running Varnish: the project's own
# (setup.sh installs it), or an installed one that VARNISH_PREFIX names.
# Source it (". scripts/env.sh"); the Makefile does so for every recipe.
# Works in any POSIX shell.

if [ -z "${VINYL_PREFIX:-}" ]; then
    # A system-wide set-up serves every user; without one, a user has their own.
    if [ "$(id -u)" = 0 ] || [ -e /opt/vmod-kvm/vinyl/.vinyl-stamp ]; then
        VINYL_PREFIX=/opt/vmod-kvm/vinyl
    else
        VINYL_PREFIX=$HOME/.local/share/vmod-kvm/vinyl
    fi
fi

# VARNISH_COMPAT: the folder with the names that the crate "varnish" expects
# (compat.sh), empty if this Varnish has them. VARNISH_PC: an installed one's pkg-config file.
if [ -z "${VARNISH_PREFIX:-}" ]; then
    VARNISH_PC=
    VARNISH_COMPAT=$VINYL_PREFIX/compat
else
    VARNISH_PC=
    for _pc in varnishapi vinylapi; do
        for _dir in lib lib64 lib/x86_64-linux-gnu; do
            _file=$VARNISH_PREFIX/$_dir/pkgconfig/$_pc.pc
            if [ -z "$VARNISH_PC" ] && [ -e "$_file" ]; then VARNISH_PC=$_file; fi
        done
    done
    case $VARNISH_PC in
    */varnishapi.pc) VARNISH_COMPAT= ;;
    */vinylapi.pc)
        # The prefix is not ours to write to.
        VARNISH_COMPAT=${XDG_CACHE_HOME:-$HOME/.cache}/vmod-kvm/compat$(printf %s "$VARNISH_PREFIX" | tr / -)
        ;;
    *)
        echo "VARNISH_PREFIX=$VARNISH_PREFIX: neither varnishapi.pc nor vinylapi.pc is in its lib/pkgconfig;" \
            "Varnish's development files are needed (Debian: libvarnishapi-dev, Fedora: varnish-devel)" >&2
        return 1
        ;;
    esac
    export VARNISH_PREFIX
fi

if [ -n "$VARNISH_COMPAT" ]; then
    _bin=$VARNISH_COMPAT/bin
    _sbin=$_bin
    _pc=$VARNISH_COMPAT/pkgconfig
    # It holds Varnish's API library and nothing else.
    _lib=$VARNISH_COMPAT/lib
    VMODTOOL=$VARNISH_COMPAT/vmodtool.py
    export VMODTOOL
else
    _bin=$(pkg-config --variable=bindir "$VARNISH_PC")
    _sbin=$(pkg-config --variable=sbindir "$VARNISH_PC")
    _pc=${VARNISH_PC%/*}
    _lib=$(pkg-config --variable=libdir "$VARNISH_PC")
    # The loader looks there by itself, and other libraries than Varnish's are there too.
    case $_lib in /usr/lib | /usr/lib64 | /usr/lib/x86_64-linux-gnu) _lib= ;; esac
    # The .pc file says where it is.
    unset VMODTOOL
fi

# Sourcing twice must not make the lists longer.
case ":$PATH:" in
*":$_bin:$_sbin:"*) ;;
*) PATH=$_bin:$_sbin:$PATH ;;
esac
case ":${PKG_CONFIG_PATH:-}:" in
":$_pc:"*) ;;
*) PKG_CONFIG_PATH=$_pc${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH} ;;
esac
if [ -n "$_lib" ]; then
    case ":${LD_LIBRARY_PATH:-}:" in
    ":$_lib:"*) ;;
    *) LD_LIBRARY_PATH=$_lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} ;;
    esac
    export LD_LIBRARY_PATH
fi

# bindgen finds Debian's libclang-14 here; an own choice wins.
if [ -z "${LIBCLANG_PATH:-}" ] && [ -e /usr/lib/llvm-14/lib/libclang.so.1 ]; then
    LIBCLANG_PATH=/usr/lib/llvm-14/lib
    export LIBCLANG_PATH
fi

VARNISHD=$_sbin/varnishd
VARNISHTEST=$_bin/varnishtest
unset _bin _sbin _pc _lib _dir _file
export VINYL_PREFIX PATH PKG_CONFIG_PATH VARNISHD VARNISHTEST
