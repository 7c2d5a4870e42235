#!/bin/sh
# Runs the privileged tests in throw-away virtual machines, one per kernel.
#
#   vagrant/vm-tests.sh [OPTION…] [KERNEL…] [-- TEST-OPTION…]
#
#   KERNEL            5.10, 6.1, 6.12, newest, host (this machine's own, where its
#                     image can be read), or a Debian suite; all of them by default
#   --userland SUITE  a guest with that suite's programs and libraries, not ours
#   --binary PATH     run this test program instead of building the suite
#   --build-only      build the suite, print the files that it needs, and end
#   --limit SECONDS   for each machine (3600: all tests, emulated, beside another)
#   --memory MIB      for each machine (1024; a test program that is not optimised takes 3072)
#   --at-once N       as many machines at a time (1)
#   --user            not as root but as an ordinary user, by tests/as-user.sh, who finds the modules of
#                     iptables-legacy loaded
#
# What follows -- goes to the test program: names to run, --test-threads=1, …. So do
# settings of the environment that begin with TSIM_, as TSIM_CASES=nft- does.
# Results of each kernel: target/vm/results/KERNEL/{junit.xml,output.log,console.log}.
# Exit status, the highest of all kernels: the tests' own; 124 a machine reached
# the limit; 125 a machine failed or panicked.
set -eu
vagrant=$(cd "$(dirname "$0")" && pwd -P)
root=$(dirname "$vagrant")
results=$root/target/vm/results

kernels='' userland=host binary='' limit=3600 memory=1024 at_once=1 as_user=''

usage() {
    sed -n '4p' "$0" | cut -c 3- >&2
    exit 125
}

# Leaves the test options alone; `options` says how many arguments they follow.
parse() {
    options=0
    while [ $# -gt 0 ]; do
        case $1 in
            --) options=$((options + 1)) && return ;;
            --userland) userland=${2-} ;;
            --binary) binary=${2-} ;;
            --build-only)
                build
                exit
                ;;
            --limit) limit=${2-} ;;
            --memory) memory=${2-} ;;
            --at-once) at_once=${2-} ;;
            --user)
                as_user="$root/tests/as-user.sh --load"
                options=$((options + 1))
                shift
                continue
                ;;
            -*) usage ;;
            *)
                kernels="$kernels $1"
                options=$((options + 1))
                shift
                continue
                ;;
        esac
        [ $# -ge 2 ] || usage
        options=$((options + 2))
        shift 2
    done
}

# The test program, then the programs that it starts. Optimised: an emulated processor needs
# twice the time for the others.
build() {
    cd "$root"
    built=$(cargo test --locked --release --no-run --test privileged --message-format=json-render-diagnostics) || exit
    built=$(echo "$built" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    echo "$built" | grep '/deps/'
    echo "$built" | grep -v '/deps/'
}

# Beside a test program, cargo puts the programs of the package.
programs_of() {
    echo "$1"
    case $1 in
        */deps/*) find "${1%/deps/*}" -maxdepth 1 -type f -executable ! -name '*.so' ;;
    esac
}

# What is set for the tests, as TSIM_CASES=nft-.
settings() {
    env | sed -n '/^TSIM_[A-Z_]*=[A-Za-z0-9._-]*$/p'
}

# Starts a kernel's machine, which must not outlive this program.
start() {
    kernel=$1
    shift
    # shellcheck disable=SC2046,SC2086 # the values hold no blanks
    set -- -- env $(settings) $as_user "$binary" "$@"
    for file in $programs "$root/netns-fixtures" "$root/tests" "$vagrant/kernels.toml"; do
        [ ! -e "$file" ] || set -- --file "$file" "$@"
    done
    [ "$at_once" -eq 1 ] || set -- --prefix "$kernel: " "$@"
    echo "--- kernel $kernel" >&2
    setpriv --pdeathsig TERM "$vagrant/qemu/run.sh" --kernel "$kernel" --userland "$userland" \
        --limit "$limit" --memory "$memory" --results "$results/$kernel" "$@" &
    running="$running $kernel:$!"
}

# Waits for the machine that was started first: until then, `stop` must know it.
settle() {
    machine=${running# }
    machine=${machine%% *}
    kernel=${machine%%:*}
    status=0
    wait "${machine#*:}" || status=$?
    running=${running# "$machine"}
    mkdir -p "$results/$kernel"
    report "$kernel" "$status" "$@"
    [ "$status" -le "$worst" ] || worst=$status
}

# What a kernel's run came to, for people and for machines.
report() {
    kernel=$1 status=$2
    shift 2
    # Without output there was no run whose tests could be missing.
    if [ -s "$results/$kernel/output.log" ]; then
        "$binary" --list "$@" 2>/dev/null
    fi >"$results/$kernel/list" || true
    report="awk -v suite=privileged.$kernel -f $vagrant/junit.awk"
    (
        cd "$results/$kernel"
        touch output.log
        $report list output.log >junit.xml
        $report -v names=1 list output.log >failed
    )
    case $status in
        0) verdict=passed ;;
        124) verdict="reached the limit of $limit s" ;;
        125) verdict='machine failed' ;;
        *) verdict=FAILED ;;
    esac
    {
        release=$(cat "$root/target/vm/kernels/$kernel/release" 2>/dev/null || echo 'not there')
        seconds=$(cat "$results/$kernel/seconds" 2>/dev/null || echo 0)
        tests=$(grep -c ': test$' "$results/$kernel/list" || true)
        echo "kernel $kernel ($release): $verdict, $tests tests, $seconds s"
        sed 's/^/    /' "$results/$kernel/failed"
    } >>"$results/summary"
}

run_all() {
    worst=0 running=''
    for kernel in $kernels; do
        start "$kernel" "$@"
        # shellcheck disable=SC2086 # one word a machine
        [ "$(set -- $running && echo $#)" -lt "$at_once" ] || settle "$@"
    done
    while [ -n "$running" ]; do
        settle "$@"
    done
    return "$worst"
}

choose_kernels() {
    if [ -z "$kernels" ]; then
        kernels=$("$vagrant/qemu/kernel.sh" --list)
        case $kernels in
            *host*) ;;
            *) echo "kernel host: not run, /boot has no readable image of $(uname -r)" \
                >>"$results/summary" ;;
        esac
    fi
}

choose_programs() {
    if [ -n "$binary" ]; then
        binary=$(realpath "$binary")
        programs=$(programs_of "$binary")
    else
        programs=$(build)
        binary=$(echo "$programs" | head -n 1)
    fi
}

stop() {
    for machine in ${running-}; do
        kill "${machine#*:}" 2>/dev/null || true
        wait "${machine#*:}" || true
    done
    exit "$1"
}

main() {
    parse "$@"
    shift "$options"
    "$vagrant/provision.sh" --check run vm || exit 125
    trap 'stop 130' INT
    trap 'stop 143' TERM HUP
    choose_programs
    mkdir -p "$results"
    : >"$results/summary"
    choose_kernels
    status=0
    run_all "$@" || status=$?
    cat "$results/summary" >&2
    return "$status"
}

main "$@"
