# shellcheck shell=sh
# What the scripts of this directory share. Read in with `.`, after `here` is
# set to this directory. Everything that is kept lies below target/vm:
#
#   target/vm/kernels/K/{vmlinuz,modules.cpio,release}   a kernel, ready to boot
#   target/vm/userland/U.cpio                           a guest's programs
#   target/vm/results/K/                                what the last run brought back
#
# Each entry is made beside its place and renamed into it: it is whole or it is
# not there. Remove an entry to have it made anew, from what the mirror has then.

: "${here:?}"
# Where an ordinary user of Debian does not look: depmod, ldconfig, and what a guest is made of.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
root=$(cd "$here/../.." && pwd -P)
cache=$root/target/vm

say() {
    echo "${0##*/}: $*" >&2
}

fail() {
    say "$*"
    exit 125
}

# Two runs that need the same entry make it once: the second waits and finds it.
# The lock goes with the descriptor, so a killed run leaves none.
lock() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
}

unlock() {
    exec 9>&-
}

# The mirror of this machine: its apt sources name one that carries its own
# release. Nothing here knows the name of a host. $1 is the end of the label,
# empty for the archive itself, -Security for the security archive.
mirror() {
    # shellcheck disable=SC2016,SC1091 # apt expands these; os-release is the machine's own
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        sed -n "s/^$(. /etc/os-release && echo "$VERSION_CODENAME")$1 main //p" |
        head -n 1
}

# apt-get or apt-cache in a root of its own for one suite: needs no privileges
# and changes nothing of the machine.  suite_apt SUITE COMMAND [ARGUMENT…]
suite_apt() {
    configuration=$cache/apt/$1/apt.conf
    tool=$2
    shift 2
    "$tool" --config-file "$configuration" --quiet=2 "$@"
}

# Read after the machine's own configuration, whose hooks are for its own root.
suite_configuration() {
    cat <<END
Dir::State "$1";
Dir::State::status "$1/status";
Dir::Cache "$1/cache";
Dir::Etc::sourcelist "$1/sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Languages "none";
APT::Sandbox::User "$(id -un)";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
END
}

suite_sources() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    archive=$(mirror '')
    [ -n "$archive" ] || fail "apt's sources name no mirror for this release's main component"
    echo "deb [signed-by=$keyring] $archive $1 main"
    security=$(mirror -security)
    # The unstable suite has no security suite of its own.
    if [ -n "$security" ] && [ "$1" != sid ]; then
        echo "deb [signed-by=$keyring] $security $1-security main"
    fi
}

suite_update() {
    suite_root=$cache/apt/$1
    mkdir -p "$suite_root/lists/partial" "$suite_root/cache/archives/partial"
    : >"$suite_root/status"
    suite_configuration "$suite_root" >"$suite_root/apt.conf"
    suite_sources "$1" >"$suite_root/sources"
    suite_apt "$1" apt-get update || fail "apt cannot read the suite $1: $(cat "$suite_root/sources")"
}

# Downloads packages of a suite into the current directory and unpacks them.
suite_unpack() {
    suite=$1
    into=$2
    shift 2
    suite_apt "$suite" apt-get download "$@" || fail "cannot download from $suite: $*"
    for package in ./*.deb; do
        dpkg-deb --extract "$package" "$into"
        rm "$package"
    done
}

# Writes the files named on standard input (relative to the current directory)
# as an archive that the kernel unpacks. Owned by root, whoever makes it.
pack() {
    LC_ALL=C sort -u | cpio --quiet --create --format=newc --owner=0:0 --reproducible
}

# The path with every directory of it resolved: /sbin/ip is /usr/sbin/ip.
resolved() {
    echo "$(cd "$(dirname "$1")" && pwd -P)/$(basename "$1")"
}

# Puts a file of this machine into $tree, with each link on the way to it.
add() {
    : "${tree:?}"
    file=$(resolved "$1")
    while [ ! -e "$tree$file" ] && [ ! -L "$tree$file" ]; do
        mkdir -p "$tree$(dirname "$file")"
        cp --no-dereference --preserve=mode,links "$file" "$tree$file"
        [ -L "$file" ] || return 0
        file=$(resolved "$(cd "$(dirname "$file")" && realpath --no-symlinks "$(readlink "$file")")")
    done
}

# What the loader will ask for. A static program has none, which ldd calls an error.
libraries_of() {
    ldd "$@" 2>/dev/null | sed -n 's/^[^/]*\(\/[^ ]*\) (0x.*/\1/p' | sort -u
}
