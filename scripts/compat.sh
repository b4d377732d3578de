# shellcheck shell=bash
# The names that the crate "varnish" 0.8 expects, for a Vinyl Cache: it knows
# those of before the project was renamed, and takes a pkg-config version of 9
# or more for another product with other structures; so we say 8.0.1.

# make_compat FOLDER FILE: fills the folder from a Vinyl's vinylapi.pc.
make_compat() {
    local folder=$1 pc=$2 bin sbin lib tool t f
    # What is made anew is compiled anew.
    if cmp -s "$pc" "$folder/made-from.pc"; then return; fi
    bin=$(pkg-config --variable=bindir "$pc") && sbin=$(pkg-config --variable=sbindir "$pc") &&
        lib=$(pkg-config --variable=libdir "$pc") && tool=$(pkg-config --variable=vmodtool "$pc") || return
    rm -rf "$folder"/{bin,lib,pkgconfig,include,vmodtool.py}
    mkdir -p "$folder"/{bin,lib,pkgconfig,include/cache} || return
    echo '#include "cache/cache_vinyld.h"' >"$folder/include/cache/cache_varnishd.h"
    for t in adm hist log ncsa stat test top; do
        # Not every package has all of them.
        [ -e "$bin/vinyl$t" ] || continue
        ln -s "$bin/vinyl$t" "$folder/bin/varnish$t"
        ln -s "$bin/vinyl$t" "$folder/bin/vinyl$t"
    done
    ln -s "$sbin/vinyld" "$folder/bin/varnishd"
    ln -s "$sbin/vinyld" "$folder/bin/vinyld"
    ln -s "$tool" "$folder/vmodtool.py"
    for f in "$lib"/libvinylapi.so*; do
        ln -s "$f" "$folder/lib/"
    done
    ln -s "$lib/libvinylapi.so" "$folder/lib/libvarnishapi.so"
    sed -e 's/^Version:.*/Version: 8.0.1/' \
        -e "s#^Cflags:.*#Cflags: -I$folder/include -I\${pkgincludedir}#" \
        -e "s#^Libs:.*#Libs: -L$folder/lib -lvarnishapi#" \
        "$pc" >"$folder/pkgconfig/varnishapi.pc" &&
        ls -L "$folder"/bin/* "$folder"/lib/* "$folder/vmodtool.py" && # no dangling link
        cp "$pc" "$folder/made-from.pc"
}
