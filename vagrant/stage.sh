#!/bin/sh
# Puts into target/vm/stage what a machine of the Vagrantfile needs to run the tests:
#
#   job.tar        the test program, the programs that it starts, and its data, at the
#                  paths that they have here
#   userland.cpio, libraries.tar
#                  this machine's own tools, and the libraries of the programs, for a
#                  guest whose are older
#   run            starts the tests in the guest
set -eu
vagrant=$(cd "$(dirname "$0")" && pwd -P)
# The paths of vm-tests.sh: the same build.
here=$vagrant/qemu
# shellcheck source-path=SCRIPTDIR/qemu
. "$here/common.sh"

built=$("$vagrant/vm-tests.sh" --build-only)
test=$(echo "$built" | head -n 1)
work=$(mktemp -d "$cache/stage.XXXXXX")
trap 'rm -rf "$work"' EXIT

# shellcheck disable=SC2046,SC2086 # paths that cargo made hold no blanks
tar --create --file "$work/job.tar" --absolute-names --owner=0 --group=0 \
    $built $(for data in "$root/netns-fixtures" "$root/tests" "$vagrant/kernels.toml"; do
        [ ! -e "$data" ] || echo "$data"
    done)
# shellcheck disable=SC2046,SC2086
tar --create --file "$work/libraries.tar" --dereference --absolute-names --owner=0 --group=0 \
    $(libraries_of $built)
cp "$("$here/userland.sh" host)" "$work/userland.cpio"
sed "s|@TEST@|$test|; s|@ROOT@|$root|" "$vagrant/guest-run.sh" >"$work/run"
chmod 755 "$work/run" "$work"
rm -rf "$cache/stage"
mv "$work" "$cache/stage"
