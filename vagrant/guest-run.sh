#!/bin/sh
# Runs the privileged tests in a guest of the Vagrantfile, as root. Arguments go to the
# test program. stage.sh fills in the two paths.
set -eu
test=@TEST@
root=@ROOT@
stage=$(dirname "$0")

# In the guest's own system where the test program starts there; otherwise (an older C
# library) among the host's tools, under the guest's kernel.
tar --extract --absolute-names --file "$stage/job.tar"
if "$test" --list >/dev/null 2>&1; then
    cd "$root"
    exec "$test" "$@"
fi
echo "guest-run.sh: this system is older than the test program: using the host's tools" >&2
tree=/tsim-userland
rm -rf "$tree"
mkdir -p "$tree"
cd "$tree"
cpio --quiet --extract --make-directories <"$stage/userland.cpio"
for archive in job libraries; do
    tar --extract --keep-directory-symlink --absolute-names --transform "s|^|$tree|" \
        --file "$stage/$archive.tar"
done
for dir in proc sys dev run; do
    mkdir -p "$tree/$dir"
    mountpoint -q "$tree/$dir" || mount --rbind "/$dir" "$tree/$dir"
done
# shellcheck disable=SC2016 # expanded in there
exec chroot "$tree" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$root" "$test" "$@"
