#!/usr/bin/env bash
# Installs what is missing and runs every test.
#
#   tests/run.sh [STAGE…]
#
# Stages, in this order when none is named:
#   format     rustfmt
#   lint       clippy with warnings as errors, shellcheck
#   unit       unit and documentation tests, licences; need no rights
#   system     everything that needs root: namespaces, rulesets, real processes
#   user       a part of that as an ordinary user, who is root of a user namespace and nothing else,
#              and whether the verdicts and reasons of the whole case table are root's to the letter
#   browser    the viewer in headless Chromium, with an accessibility check
#   bench      every benchmark compiled, and run once
#   vm         a part of the privileged tests on kernels 6.1 and 5.10, in virtual machines
#
# and only when it is named:
#   chains     three thousand services of random chains of routers, where the stage system tries
#              three hundred; three thousand more by connections and their answers, where that tries a
#              hundred and fifty; and as many whose way forks, begins or ends inside a router, of all
#              protocols and sizes, where that tries two hundred; TSIM_CHAINS_SEED=N begins with that chain,
#              TSIM_CHAINS_SHRINK=0 leaves one that is answered wrongly as it is (making it smaller takes
#              minutes), and TSIM_CHAINS_LOOK=COMMAND is what sh(1) runs while such a chain and its lab
#              stand, `bash` for one: $CHAIN and $LAB begin their namespaces' names, $ASK asks
#   left-out   a thousand rulesets of which a rule is left out, where the stage system tries sixty:
#              UNKNOWN if and only if that rule could change the verdict
#   mutations  ten thousand damaged facts, where the stage system tries three hundred
#   round-trips  what is collected from the router of every case made into a lab again, where the stage
#              system tries every twelfth
#   rulesets   two thousand random rulesets, and as many that decide by rate, chance or history, where
#              the stage system tries a hundred and two dozen
#   kills      a thousand kills of jobs, labs, the daemon and its runners, where the stage system tries a
#              hundred: the next job is right, and nothing is left; TSIM_KILLS_SEED=N tries others
#   package    the Debian package: built, and installed, used and removed in fresh roots of Debian 12
#              and 13; and what `cargo install` puts in place
#   vm-full    all of them, on every kernel that vagrant/vm-tests.sh knows
#   vm-user    all that an ordinary user may do of them, on 6.1 and 6.12; not all of it passes there yet
#
# Without root's rights, which system, browser and bench take, the stages are format, lint, unit, user
# and vm, and user runs all privileged tests.
#
# A test that cannot run is a failure, never a skip. Exit status: 0 only if all passed.
set -euo pipefail
cd "$(dirname "$0")/.."

# What the case table answers to root, from the stage system of this run to the stage user.
root_verdicts=$(mktemp)
trap 'rm -f "$root_verdicts"' EXIT

# More than processors: tests of networks wait half of their time, for packets that do not come.
threads=$(($(nproc) + 2))

note() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }

need_root() {
    if [ "$(id -u)" -ne 0 ]; then
        echo "tests/run.sh: the stage '$1' makes network namespaces: run it as root" >&2
        exit 1
    fi
}

stage_format() { cargo fmt --check; }

stage_lint() {
    cargo clippy --locked --all-targets -- -D warnings
    # Sealed, as programs have it: what only tests open is private here, and what nobody uses is told.
    cargo clippy --locked --lib --bins -- -D warnings
    git ls-files -z -- '*.sh' .ci/run vagrant/qemu/init | xargs -0 -r shellcheck
}

stage_unit() {
    cargo test --locked --lib --bins --test licences --test house
    cargo test --locked --doc
}

# Runs in a mount namespace of its own with an empty /run/netns, so that every namespace named there
# afterwards was made by the tests and left behind; labs that come and go elsewhere on the machine
# are neither seen nor touched.
stage_system() {
    need_root system
    # shellcheck disable=SC2016 # the inner shell expands these
    unshare --mount --propagation private bash -euc '
        mkdir -p /run/netns
        mount -t tmpfs -o mode=755 tmpfs /run/netns
        # A test runs them, and `--test` alone does not build them.
        cargo build --locked --examples
        # The limit is what a login gives; more would hide descriptors that are never closed.
        ulimit -Sn 1024
        TSIM_VERDICTS=$1 RUST_TEST_THREADS=$2 cargo test --locked --test "*"
        left=$(ip netns list | sort)
        if [ -n "$left" ]; then
            printf "tests/run.sh: namespaces were left behind:\n%s\n" "$left" >&2
            exit 1
        fi
    ' bash "$root_verdicts" "$threads"
}

# What differs without root's rights: namespaces, netlink, buffers, loaders, locks, taps, traces.
USER_PART=(buffers:: doors:: hosts:: iptables:: netlink:: netns:: owner:: plain_rulesets:: quick registry:: trace:: vacate:: way::)
# Take rights outside of a user namespace: other user ids (one as a rule's uidrange), and settings of a
# device's queues; so does lldpd(8), which changes to a user of its own. Three hundred damaged facts are no
# other without root.
USER_SKIPS=(--skip lldp:: --skip answers_by_other_routers --skip without_rights --skip belongs_to_somebody_else --skip another_user --skip sender_does_not_carry --skip doors::mutate)

# as_user TEST-OPTION…: the privileged tests as an ordinary user.
as_user() {
    RUST_TEST_THREADS=$threads cargo --config 'target."cfg(unix)".runner = "tests/as-user.sh"' \
        test --locked --test privileged -- "$@"
}

# but_chance FILE: verdicts without what their reasons say that chance decides, that is by which of two rules a
# service is stopped in any case: a rate goes by how long the machine took.
but_chance() { sed -E 's/ NO .*(; by which rule, depends: )/ NO\1/' "$1"; }

stage_user() {
    ulimit -Sn 1024
    if [ "$(id -u)" -ne 0 ]; then
        as_user "${USER_SKIPS[@]}"
        return
    fi
    as_user "${USER_PART[@]}" "${USER_SKIPS[@]}"

    # The stage system has run the table as root.
    [ -s "$root_verdicts" ] || TSIM_VERDICTS=$root_verdicts cargo test --locked --test privileged -- every_case_has
    local verdicts
    verdicts=$(mktemp)
    chmod 666 "$verdicts"
    TSIM_VERDICTS=$verdicts as_user every_case_has
    diff <(but_chance "$root_verdicts") <(but_chance "$verdicts")
    echo "as an ordinary user: $(wc -l <"$verdicts") verdicts with their reasons, as root's"
    rm "$verdicts"
}

stage_browser() {
    need_root browser
    ./vagrant/provision.sh browser
    command -v npm >/dev/null || ./vagrant/provision.sh node
    cargo build --locked --bins
    (cd tests/browser && npm ci --no-audit --no-fund && npm test)
}

stage_bench() {
    need_root bench
    # --test: each benchmark runs once, to show that it still does; no figure is judged here.
    cargo bench --locked --bench '*' -- --test
}

# What kernels differ in: features, namespaces, netlink, taps, traces, locks. Left out is what takes
# minutes on an emulated processor (the case table, crowds, kills at every step, soaks).
VM_PART=(by_hand::modules kinds::networks_of_kinds kernels:: netns:: netlink:: owner:: registry:: hosts:: trace:: vacate:: quick:: doubts:: plain_rulesets::)

stage_vm() {
    ./vagrant/provision.sh vm
    ./vagrant/vm-tests.sh --at-once 2 --limit 1200 6.1 5.10 -- "${VM_PART[@]}"
}

# in_own_netns_dir COMMAND…: with an empty /run/netns of its own.
in_own_netns_dir() {
    # shellcheck disable=SC2016 # the inner shell expands these
    unshare --mount --propagation private bash -euc '
        mkdir -p /run/netns
        mount -t tmpfs -o mode=755 tmpfs /run/netns
        "$@"
    ' bash "$@"
}

stage_chains() {
    need_root chains
    TSIM_CHAINS_SEED=${TSIM_CHAINS_SEED:-$RANDOM} TSIM_CHAINS=300 \
        in_own_netns_dir cargo test --locked --test privileged -- --nocapture chains::
}

stage_rulesets() {
    need_root rulesets
    in_own_netns_dir env TSIM_FUZZ_RULESETS=2000 TSIM_VARIED_RULESETS=2000 \
        cargo test --locked --test privileged -- --nocapture cases::fuzz cases::varied
}

stage_kills() {
    need_root kills
    TSIM_KILLS=${TSIM_KILLS:-1000} TSIM_KILLS_SEED=${TSIM_KILLS_SEED:-$RANDOM} \
        in_own_netns_dir cargo test --locked --test privileged -- --nocapture kills::
}

stage_left-out() {
    need_root left-out
    TSIM_LEFT_OUT=1000 \
        in_own_netns_dir cargo test --locked --test privileged -- --nocapture left_out::
}

stage_round-trips() {
    need_root round-trips
    TSIM_ROUND_TRIPS=all \
        in_own_netns_dir cargo test --locked --test privileged -- --nocapture cases::round_trip
}

stage_mutations() {
    need_root mutations
    TSIM_MUTATIONS=10000 \
        in_own_netns_dir cargo test --locked --test privileged -- --nocapture doors::mutate
}

stage_package() {
    need_root package
    ./vagrant/provision.sh deb
    ./tests/package.sh "$(./vagrant/build-deb.sh)"
    cargo install --quiet --locked --path . --root target/package/installed
    for program in tsim tsim-quick tsim-detailed tsimd; do
        "target/package/installed/bin/$program" --version
    done
}

stage_vm-full() {
    ./vagrant/provision.sh vm
    ./vagrant/qemu/test.sh 6.1
    # lldpd(8) is not among the programs of the machines.
    ./vagrant/vm-tests.sh --at-once 2 -- --skip lldp::
}

# What loads modules of tunnels cannot unload them as a user, and other tests would find their devices.
stage_vm-user() {
    ./vagrant/provision.sh vm
    ./vagrant/vm-tests.sh --at-once 2 --user 6.1 6.12 -- "${USER_SKIPS[@]}" --skip by_hand::modules
}

# Compiles what the stages bench and vm need while the tests of the stage system wait for answers that
# do not come. What fails here fails there again, and is told of there.
compile_ahead() {
    nice -n 19 cargo test --quiet --locked --release --no-run --test privileged >/dev/null 2>&1 &
    # shellcheck disable=SC2064 # the process of now
    trap "rm -f '$root_verdicts'; kill $! 2>/dev/null || true" EXIT
}

main() {
    for stage in "$@"; do
        case $stage in
            format | lint | unit | system | user | browser | bench | vm | chains | kills | left-out | mutations | package | round-trips | rulesets | vm-full | vm-user) ;;
            *)
                echo "tests/run.sh: no stage is named '$stage': format, lint, unit, system, user, browser, bench, vm, chains, kills, left-out, mutations, package, round-trips, rulesets, vm-full, vm-user" >&2
                exit 2
                ;;
        esac
    done
    if [ $# -eq 0 ]; then
        set -- format lint unit system user browser bench vm
        if [ "$(id -u)" -ne 0 ]; then
            set -- format lint unit user vm
            note "without root's rights: $*; system, browser and bench are not run"
        fi
    fi
    note "packages"
    ./vagrant/provision.sh build run lint
    for stage in "$@"; do
        note "$stage"
        case "$stage of $* " in "system of "*" bench "* | "system of "*" vm "*) compile_ahead ;; esac
        "stage_$stage"
    done
    note "all passed: $*"
}

main "$@"
