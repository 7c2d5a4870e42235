#!/bin/sh
# Builds the networks of netns-fixtures/kinds by hand, collects their routers' facts, and measures
# their ways.
#
#   netns-fixtures/generators/kinds.sh [--check] [--kind NAME]
#
#   --check        write nothing; fail where a way is not as it was measured
#   --kind NAME    the kinds alone whose names begin so
#
# Kinds that need modules are built where the kernel is one of Debian's; on another machine, in one of
# the machines of vagrant/vm-tests.sh, whose /results come back to target/vm/results/KERNEL:
#
#   TSIM_COLLECT_TO=/results vagrant/vm-tests.sh 6.12 -- --ignored kinds::collected_anew
#
# Needs root. Namespaces are made in a directory of their own, and removed.
set -eu
cd "$(dirname "$0")/../.."

test=kinds::collected_anew
while [ $# -gt 0 ]; do
    case $1 in
        --check) test=kinds::networks ;;
        --kind)
            export TSIM_KIND="${2:?}"
            shift
            ;;
        *)
            sed -n '5p' "$0" | cut -c 3- >&2
            exit 2
            ;;
    esac
    shift
done

export TSIM_COLLECT_TO="$PWD/netns-fixtures/kinds"
# shellcheck disable=SC2016 # the inner shell expands these
exec unshare --mount --propagation private sh -euc '
    mkdir -p /run/netns
    mount -t tmpfs -o mode=755 tmpfs /run/netns
    cargo test --quiet --test privileged -- --include-ignored "$1"
' sh "$test"
