#!/bin/sh
# Shows that run.sh tells the truth about its machines, with programs of a line or two.
#
#   vagrant/qemu/test.sh KERNEL [ROUNDS]
#
# ROUNDS (20): how often two machines are run side by side; each must give its result.
# Prints a line per question; the exit status is 0 only when all answers were right.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

kernel=${1-} rounds=${2-20}
[ -n "$kernel" ] || fail "usage: test.sh KERNEL [ROUNDS]"
wrong=0

# machine NAME [OPTION…] -- COMMAND: its output and its complaints go to files.
machine() {
    name=$1
    shift
    "$here/run.sh" --kernel "$kernel" --chdir / --results "$work/$name" "$@" \
        >"$work/$name.out" 2>"$work/$name.err"
}

# right QUESTION: reads the status of the command before it.
right() {
    if [ "$2" = "$3" ]; then
        echo "ok: $1"
    else
        echo "WRONG: $1: $2 instead of $3"
        wrong=1
    fi
}

status_of() {
    status=0
    "$@" || status=$?
    echo "$status"
}

ask_statuses() {
    right "a command that succeeds" "$(status_of machine good -- true)" 0
    right "a command that fails, by its own status" "$(status_of machine bad -- sh -c 'exit 7')" 7
    right "what it leaves in /results comes back" \
        "$(status_of machine left -- sh -c 'echo kept >/results/file') $(cat "$work/left/file")" '0 kept'
    right "a process left behind is a failure, and is named" \
        "$(status_of machine stray -- sh -c 'sleep 1000 & exit 0') $(
            grep -c 'left a process running: sleep' "$work/stray.out"
        )" '1 1'
}

ask_ends() {
    right "a guest that hangs is killed at its limit" \
        "$(status_of machine hang --limit 15 -- sleep 1000) $(
            grep -c 'killed at the limit of 15 s' "$work/hang.err"
        )" '124 1'
    right "a guest that panics is told from one that fails, with its console" \
        "$(status_of machine panic -- sh -c 'echo c >/proc/sysrq-trigger') $(
            grep -c 'Kernel panic' "$work/panic.err"
        )" '125 1'
}

# More than the pipes between the guest and here can hold.
ask_slow_reader() {
    lines=$({
        "$here/run.sh" --kernel "$kernel" --chdir / --results "$work/slow" -- \
            sh -c 'seq 1 100000; echo end'
    } | {
        # Until the guest has written all, or stands still.
        timeout 20 tail --follow --retry --quiet "$work/slow/output.log" 2>/dev/null |
            grep --max-count=1 --quiet '^end$' || true
        wc -l
    })
    right "no line is lost by a slow reader" "$lines" 100001
}

ask_interrupt() {
    # In a session of its own, where ^C is not ignored, as at a terminal.
    # shellcheck disable=SC2016 # expanded in there
    setsid --fork sh -c 'echo $$ >"$1" && shift && exec "$@"' sh "$work/pid" \
        env --default-signal=INT "$here/run.sh" --kernel "$kernel" --chdir / \
        --results "$work/interrupt" -- sh -c 'echo up; sleep 1000' >"$work/interrupt.out" 2>&1
    timeout 60 tail --follow --retry --quiet "$work/interrupt.out" 2>/dev/null |
        grep --max-count=1 --quiet '^up$'
    pid=$(cat "$work/pid")
    kill -INT "-$pid"
    timeout 20 tail --follow --pid="$pid" /dev/null
    right "^C leaves no process" "$(pgrep --session "$pid" | wc -l)" 0
}

ask_rounds() {
    same=0
    for round in $(seq "$rounds"); do
        "$here/run.sh" --kernel "$kernel" --chdir / -- sh -c 'seq 1 3000; exit 3' \
            >"$work/one" 2>"$work/one.err" &
        one=$!
        status=$(status_of machine two -- sh -c 'seq 1 3000; exit 4')
        first=0
        wait "$one" || first=$?
        seq 1 3000 >"$work/wanted"
        if [ "$first $status" = '3 4' ] && cmp -s "$work/one" "$work/wanted" &&
            cmp -s "$work/two.out" "$work/wanted"; then
            same=$((same + 1))
        else
            echo "round $round: status $first and $status"
            cat "$work/one.err" "$work/two.err"
        fi
    done
    right "rounds of two machines side by side with equal results" "$same" "$rounds"
}

main() {
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/test.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    ask_statuses
    ask_ends
    ask_slow_reader
    ask_interrupt
    ask_rounds
    return "$wrong"
}

main
