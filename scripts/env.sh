# shellcheck shell=sh
# Environment for building against and running the project's own Varnish.
# Source it (". scripts/env.sh"); the Makefile does so for every recipe.
# Works in any POSIX shell; setup.sh fills the prefix that it points to.

if [ -z "${VINYL_PREFIX:-}" ]; then
    # A system-wide set-up serves every user; without one, a user has their own.
    if [ "$(id -u)" = 0 ] || [ -e /opt/vmod-kvm/vinyl/.vinyl-stamp ]; then
        VINYL_PREFIX=/opt/vmod-kvm/vinyl
    else
        VINYL_PREFIX=$HOME/.local/share/vmod-kvm/vinyl
    fi
fi
_compat=$VINYL_PREFIX/compat

# Sourcing twice must not make the lists longer.
case ":$PATH:" in
*":$_compat/bin:"*) ;;
*)
    PATH=$_compat/bin:$PATH
    PKG_CONFIG_PATH=$_compat/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
    # compat/lib holds Varnish's API library and nothing else.
    LD_LIBRARY_PATH=$_compat/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    ;;
esac

# bindgen finds Debian's libclang-14 here; an own choice wins.
if [ -z "${LIBCLANG_PATH:-}" ] && [ -e /usr/lib/llvm-14/lib/libclang.so.1 ]; then
    LIBCLANG_PATH=/usr/lib/llvm-14/lib
    export LIBCLANG_PATH
fi

VARNISHD=$_compat/bin/varnishd
VARNISHTEST=$_compat/bin/varnishtest
VMODTOOL=$_compat/vmodtool.py
unset _compat
export VINYL_PREFIX PATH PKG_CONFIG_PATH LD_LIBRARY_PATH VARNISHD VARNISHTEST VMODTOOL
