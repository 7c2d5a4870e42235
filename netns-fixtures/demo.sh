#!/usr/bin/env bash
# From nothing to an answer: installs what a fresh Debian 12 lacks, builds, brings up a lab of ten
# routers from collected facts, asks which services get from a data centre to a branch office through
# the four routers between them, why one does not and one does, and cleans up. Only packages need root.
#
#   netns-fixtures/demo.sh [--keep]
#
#   --keep   leave the lab up, to go on with it by hand
set -euo pipefail
cd "$(dirname "$0")/.."

lab=corp10
source=10.3.10.50
destination=10.2.1.60
services=ssh,http,https,3306,5432/tcp,dns,ntp,161/udp,8000-8010,33434-33440/udp

keep=false
case ${1-} in
    '') ;;
    --keep) keep=true ;;
    *)
        echo "usage: netns-fixtures/demo.sh [--keep]" >&2
        exit 2
        ;;
esac
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# A job answers NO or UNKNOWN with exit codes 1 and 3: answers, not failures.
answer() {
    local status=0
    "$@" || status=$?
    case $status in
        0 | 1 | 3) ;;
        *) return "$status" ;;
    esac
}

say "Packages"
./vagrant/provision.sh build run
say "Build"
cargo build --locked --release
PATH=$(realpath "${CARGO_TARGET_DIR:-target}")/release:$PATH

if ! $keep; then
    trap 'tsim lab down "$lab" >&2' EXIT
fi
say "tsim lab up $lab --facts netns-fixtures/corp10"
tsim lab up "$lab" --facts netns-fixtures/corp10
say "tsim trace --lab $lab -s $source -d $destination"
tsim trace --lab "$lab" -s "$source" -d "$destination"
say "tsim-quick --lab $lab -s $source -d $destination -P $services"
answer tsim-quick --lab "$lab" -s "$source" -d "$destination" -P "$services" --explain always
say "tsim-detailed --lab $lab -s $source -d $destination -P ssh,33434/udp --routers dc-gw --run-id demo"
answer tsim-detailed --lab "$lab" -s "$source" -d "$destination" -P ssh,33434/udp --routers dc-gw \
    --run-id demo
if $keep; then
    say "The lab is up"
    binaries=$(realpath "${CARGO_TARGET_DIR:-target}")/release
    printf '%s\n' "The programs are in $binaries. In this shell, or with a line in ~/.profile:" \
        "  export PATH=$binaries:\$PATH" \
        "Or install them: cargo install --locked --path . (into ~/.cargo/bin); vagrant/build-deb.sh makes a" \
        "Debian package. Then:" \
        "  tsim lab status $lab" \
        "  tsim lab down $lab"
else
    say "Clean up"
fi
