#!/bin/sh
# Runs one command as root in a throw-away virtual machine.
#
#   run.sh --kernel KERNEL [OPTION…] -- COMMAND [ARGUMENT…]
#
#   --kernel KERNEL      see kernel.sh
#   --userland U         host (the default) or a Debian suite, see userland.sh
#   --file PATH          give the guest this file, or directory, at the same
#                        path; programs come with their libraries (repeatable)
#   --chdir DIR          where COMMAND starts (the repository)
#   --results DIR        what COMMAND leaves in /results, with console.log, output.log
#                        and seconds, for how long the machine ran; emptied first
#   --limit SECONDS      end the machine then (600)
#   --memory MIB         (1024)
#   --accel kvm|tcg      do not find out
#   --prefix TEXT        before each line of the command's output
#
# The command's output is this program's. Exit status: the command's own;
# 124 when the limit was reached; 125 when the machine could not be made, failed
# or panicked: then the end of its console is shown.
# Needs no privileges. However it ends, no process stays.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

kernel='' userland=host results='' limit=600 memory=1024 accel='' prefix=''
chdir=$root

usage() {
    sed -n '4,5p' "$0" | cut -c 3- >&2
    exit 125
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            --) return ;;
            --file) ;;
            --kernel) kernel=${2-} ;;
            --userland) userland=${2-} ;;
            --chdir) chdir=${2-} ;;
            --results) results=${2-} ;;
            --limit) limit=${2-} ;;
            --memory) memory=${2-} ;;
            --accel) accel=${2-} ;;
            --prefix) prefix=${2-} ;;
            *) usage ;;
        esac
        [ $# -ge 2 ] || usage
        shift 2
    done
    usage
}

# One argument as a word of the shell, whatever it holds.
quoted() {
    printf "'%s' " "$(printf '%s\n' "$1" | sed "s/'/'\\\\''/g")"
}

# A file or directory of the host, at its own path, and what it is linked with.
give() {
    [ -e "$1" ] || fail "--file $1: there is no such file"
    real=$(realpath "$1")
    mkdir -p "$tree$(dirname "$real")"
    cp --recursive --reflink=auto "$real" "$tree$(dirname "$real")/"
    [ "$userland" = host ] && [ -f "$real" ] || return 0
    for library in $(libraries_of "$real"); do
        add "$library"
    done
}

# The part of the guest that is this job's: arguments as for parse.
make_job() {
    tree=$work/job
    mkdir -p "$tree/job" "$tree$chdir"
    while [ "$1" != -- ]; do
        [ "$1" != --file ] || give "$2"
        shift 2
    done
    shift
    {
        printf 'cd '
        quoted "$chdir"
        printf '\nexec '
        for argument in "$@"; do
            quoted "$argument"
        done
        echo
    } >"$tree/job/command"
    cp "$here/init" "$tree/init"
    (cd "$tree" && find . | pack) >"$work/job.cpio"
    rm -rf "$tree"
}

# One emulated processor. Two that take turns on one thread need twice the time for the same
# tests, because one waits for locks that the other holds; with a thread each, two guests in
# forty stood still or fell over on a busy host.
machine() {
    case $accel in
        kvm) echo '-accel kvm -cpu host -smp 2' ;;
        *) echo '-accel tcg,tb-size=512 -cpu max -smp 1' ;;
    esac
}

boot() {
    cat "$(userland_archive)" "$kernel_dir/modules.cpio" "$work/job.cpio" >"$work/initrd"
    # Not qemu's own standard output: its chardev counts as unplugged when
    # standard input is at its end, and a guest that writes to it then waits.
    # The port ends in a file, which takes everything at once. It may not be a pipe:
    # what a full pipe does not take stays in the guest, and goes down with it. The
    # chardev's log may: it is written whole, and the machine stands still meanwhile.
    mkfifo "$work/output"
    # Held open until qemu ends: a reader of a pipe that nobody opens would wait for ever.
    exec 7<>"$work/output"
    # Not `cat`, which knows no lines: two machines may write to the same terminal.
    setpriv --pdeathsig KILL sed --unbuffered "s/^/$prefix/" "$work/output" 7>&- &
    reader_pid=$!
    started=$(date +%s)
    # The clock is the HPET: a guest measures the processor's own counter at boot, is
    # several times wrong when the host is busy just then, and its seconds with it.
    # For the same reason no_timer_check: whether the timer ticks is judged by ten ticks, and a
    # guest that the host kept waiting then panics, "IO-APIC + timer doesn't work!".
    # Whoever starts a process here is outlived by none of them, not even when
    # killed: the kernel ends the child with its parent.
    # shellcheck disable=SC2046 # words
    setpriv --pdeathsig KILL \
        timeout --foreground --kill-after=10 "$limit" \
        setpriv --pdeathsig KILL \
        qemu-system-x86_64 -machine pc $(machine) -m "$memory" \
        -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$kernel_dir/vmlinuz" -initrd "$work/initrd" \
        -append 'console=ttyS0 loglevel=5 mitigations=off no_timer_check clocksource=hpet tsc=unstable panic=-1' \
        -serial "file:$results/console.log" \
        -device virtio-serial-pci,max_ports=4 \
        -chardev "file,id=output,path=$results/output.log,logfile=$work/output" \
        -device virtserialport,nr=1,chardev=output \
        -chardev "file,id=results,path=$work/results.tar" \
        -device virtserialport,nr=2,chardev=results </dev/null 7>&- &
    machine_pid=$!
    wait "$machine_pid"
    status=$?
    machine_pid=
    seconds=$(($(date +%s) - started))
    echo "$seconds" >"$results/seconds"
    exec 7>&-
    wait "$reader_pid"
    # A machine that stands still for its reader does not end when asked, and is killed.
    [ "$status" -ne 137 ] || [ "$seconds" -lt "$limit" ] || status=124
    return $status
}

userland_archive() {
    "$here/userland.sh" "$userland"
}

# What the command left, and its status; none of it when the guest did not get
# so far.
collect() {
    tar -xf "$work/results.tar" -C "$results" 2>/dev/null && [ -s "$results/status" ]
}

failed() {
    say "$*; the end of its console ($results/console.log):"
    tail -n 100 "$results/console.log" >&2 2>/dev/null || true
}

judge() {
    if [ "$1" -eq 124 ]; then
        failed "kernel $kernel: killed at the limit of $limit s"
        return 124
    elif collect; then
        return "$(cat "$results/status")"
    fi
    failed "kernel $kernel: the machine ended without a result (qemu: $1)"
    return 125
}

# Hardware virtualisation is used only where a guest has really booted with it:
# a /dev/kvm that is there may still not run such a kernel.
find_accel() {
    [ -z "$accel" ] || return 0
    accel=tcg
    [ -w /dev/kvm ] || return 0
    known=$cache/accel-$(cat /proc/sys/kernel/random/boot_id)
    if [ ! -e "$known" ]; then
        if "$0" --kernel "$kernel" --accel kvm --limit 15 -- true 2>/dev/null; then
            echo kvm >"$known"
        else
            echo tcg >"$known"
        fi
    fi
    accel=$(cat "$known")
}

# A directory of this run's own, locked as long as the run lives; those that
# killed runs left are removed here.
make_work() {
    lock
    for old in "$cache"/run.*; do
        [ ! -d "$old" ] || ! flock --nonblock "$old" true || rm -rf "$old"
    done
    work=$(mktemp -d "$cache/run.XXXXXX")
    exec 8<"$work"
    flock 8
    unlock
}

clean_up() {
    trap - EXIT INT TERM HUP
    [ -z "${machine_pid-}" ] || kill "$machine_pid" 2>/dev/null || true
    [ -z "${machine_pid-}" ] || wait "$machine_pid" || true
    rm -rf "$work"
}

main() {
    parse "$@"
    [ -n "$kernel" ] || usage
    kernel_dir=$("$here/kernel.sh" "$kernel") || exit 125
    userland_archive >/dev/null || exit 125
    find_accel
    make_work
    trap clean_up EXIT
    trap 'clean_up; exit 130' INT
    trap 'clean_up; exit 143' TERM HUP
    results=${results:-$work/results}
    rm -rf "$results"
    mkdir -p "$results"
    make_job "$@"
    status=0
    boot || status=$?
    judge "$status" || exit
}

main "$@"
