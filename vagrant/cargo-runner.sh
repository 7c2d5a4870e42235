#!/bin/sh
# Lets cargo run tests in a virtual machine of the kernel given first:
#
#   CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='vagrant/cargo-runner.sh 6.1' \
#       cargo test --test privileged
set -eu
kernel=$1
binary=$2
shift 2
exec "$(dirname "$0")/vm-tests.sh" --binary "$binary" "$kernel" -- "$@"
