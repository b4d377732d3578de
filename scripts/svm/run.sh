#!/bin/bash
# run.sh [options] [--] CMD [ARG...]
# Boots a stock Debian kernel in QEMU without hardware help: it emulates an AMD
# CPU with SVM and nested paging, so that kvm_amd offers a standard /dev/kvm.
# This machine's files are there read-only under a tmpfs, the current folder and
# environment are the same. Streams CMD's output and exits with its status.
#   -t SEC   wall-clock limit (default 600)    -m SIZE  memory (default 3G)
#   -s N     CPUs (default 2)                  -w DIR   share DIR for writing (repeatable)
#   -k OPTS  kvm_amd options (npt=0)           -v       the console log at the end
# Exit: CMD's status; 124 time limit; 125 the machine failed.
# Times in there mean nothing: code runs about 10 times slower than outside.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/env.sh
. "$here/../env.sh"
dir=${SVM_DIR:-$(dirname "$VINYL_PREFIX")/svm}
limit=600 cpus=2 memory=3G kvm_amd='' verbose='' shares=()
usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 125; }
while getopts t:s:m:w:k:v o; do
    case $o in
    t) limit=$OPTARG ;;
    s) cpus=$OPTARG ;;
    m) memory=$OPTARG ;;
    w) shares+=("$(readlink -f "$OPTARG")") ;;
    k) kvm_amd=$OPTARG ;;
    v) verbose=1 ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage
kernel=$dir/kernel-${SVM_KERNEL:-6.1}
[ -s "$kernel/initrd" ] || { echo "run.sh: run $here/build.sh first" >&2; exit 125; }

# The control folder, shared with the machine: what to run, its output and status.
ctl=$(mktemp -d /tmp/svm.XXXXXX)
qemu_pid='' tails=()
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    trap '' INT TERM HUP # a second one must not cut this short
    if [ -n "$qemu_pid" ]; then
        kill "$qemu_pid" 2>/dev/null
        wait "$qemu_pid" 2>/dev/null
    fi
    for p in "${tails[@]}"; do kill "$p" 2>/dev/null; done
    rm -rf "$ctl"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

{
    export -p | grep -v -E '^declare -x (PWD|OLDPWD|SHLVL|_)='
    printf 'umask %s\ncd %q || exit 126\nexec' "$(umask)" "$PWD"
    printf ' %q' "$@"
    echo
} >"$ctl/run.sh"
touch "$ctl"/{out,err,mounts,console}
if [ "$(readlink /proc/$$/fd/1)" = "$(readlink /proc/$$/fd/2)" ]; then : >"$ctl/merge"; fi
virtfs=(-virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    -virtfs "local,path=$ctl,mount_tag=ctl,security_model=none")
for i in "${!shares[@]}"; do
    virtfs+=(-virtfs "local,path=${shares[i]},mount_tag=rw$i,security_model=none,multidevs=remap")
    echo "rw$i ${shares[i]}" >>"$ctl/mounts"
done

# tsc=reliable: the emulated clock fails the kernel's checks, and the other
# clocks are slow. The rest of the line saves time at boot.
append="console=ttyS0 panic=-1 nokaslr mitigations=off loglevel=4 tsc=reliable no_timer_check
 cryptomgr.notests=1 apparmor=0 audit=0 nowatchdog rcupdate.rcu_expedited=1 svm.kvm_amd=$kvm_amd"
# thread=single: one host thread takes turns as all emulated CPUs. With a thread each
# and nested paging, QEMU 10.0's emulated CPUs at times report a page as not present
# that is there in both levels of tables: four machines that do nothing but `out` in a
# loop show it within a minute, as a triple fault or as a panic of the kernel around them.
setpriv --pdeathsig TERM timeout -k 2 "$limit" "$dir/qemu/usr/bin/qemu-system-x86_64" \
    -L "$dir/qemu/usr/share/qemu" -L "$dir/qemu/usr/share/seabios" \
    -M q35 -accel tcg,thread=single -cpu max -smp "$cpus" -m "$memory" \
    -nodefaults -no-user-config -display none -monitor none -no-reboot -serial "file:$ctl/console" \
    -kernel "$kernel/vmlinux" -initrd "$kernel/initrd" "${virtfs[@]}" \
    -append "${append//$'\n'/}" </dev/null >"$ctl/qemu.log" 2>&1 &
qemu_pid=$!
tail -s 0.1 --pid=$qemu_pid -c +1 -f "$ctl/out" &
tails+=($!)
tail -s 0.1 --pid=$qemu_pid -c +1 -f "$ctl/err" >&2 &
tails+=($!)
wait $qemu_pid
rc=$?
qemu_pid=
wait "${tails[@]}" 2>/dev/null
tails=()

if [ -n "$verbose" ]; then cat "$ctl/console" "$ctl/qemu.log" "$ctl/dmesg" >&2; fi
if [ -s "$ctl/status" ]; then exit "$(cat "$ctl/status")"; fi
if [ $rc = 124 ] || [ $rc = 137 ]; then
    echo "run.sh: stopped after ${limit} s" >&2
    exit 124
fi
{
    echo "run.sh: the machine ended without a status (QEMU: $rc). Its last words:"
    tail -n 30 "$ctl/console"
    tail -n 5 "$ctl/qemu.log"
} >&2
exit 125
