#!/usr/bin/env bash
# Builds the Debian package of tsim from this checkout.
#
#   vagrant/build-deb.sh [--debug] [DIRECTORY]
#
#   --debug     of debug binaries, which are built faster
#   DIRECTORY   where the package goes; target/debian unless given
#
# Prints the package's path. It runs on the suite that it was built on and on later ones: its
# dependencies are the libraries that the binaries link, in the version that is installed here or later.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=release
if [ "${1-}" = --debug ]; then
    profile=dev
    shift
fi
out=${1:-target/debian}
programs=(tsim tsim-quick tsim-detailed tsimd)

cargo build --quiet --locked --bins --profile "$profile"
binaries=${CARGO_TARGET_DIR:-target}/${profile/dev/debug}

mkdir -p "$out"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
umask 022

version=$(sed -n 's/^version = "\(.*\)"/\1/p;T;q' Cargo.toml)
commit=$(git rev-parse --short HEAD 2>/dev/null || true)
version=$version${commit:++git$(git show -s --format=%cd --date=format:%Y%m%d%H%M HEAD).$commit}

install -Dm755 -t "$tree/usr/bin" "${programs[@]/#/$binaries/}"
strip --strip-debug "$tree"/usr/bin/*
tsim=$tree/usr/bin/tsim

"$tree/usr/bin/tsimd" --print-config | install -Dm644 /dev/stdin "$tree/etc/tsim/tsim.toml"
"$tree/usr/bin/tsimd" --print-unit | install -Dm644 /dev/stdin "$tree/usr/lib/systemd/system/tsimd.service"
# Kernels load these for root; for an ordinary user's network namespace some do not.
printf '%s\n' '# Rulesets of iptables-legacy in labs of ordinary users, see README.' \
    iptable_{raw,mangle,nat,filter,security} ip6table_{raw,mangle,nat,filter,security} |
    install -Dm644 /dev/stdin "$tree/usr/lib/modules-load.d/tsim.conf"

"$tsim" generate man "$tree/usr/share/man/man1" >/dev/null
gzip -9n "$tree"/usr/share/man/man1/*
"$tsim" generate completions "$tree/completions" >/dev/null
install -Dm644 -t "$tree/usr/share/bash-completion/completions" "$tree"/completions/bash/*
install -Dm644 -t "$tree/usr/share/zsh/vendor-completions" "$tree"/completions/zsh/*
install -Dm644 -t "$tree/usr/share/fish/vendor_completions.d" "$tree"/completions/fish/*
rm -r "$tree/completions"

doc=$tree/usr/share/doc/tsim
install -Dm644 -t "$doc" README.md
install -Dm644 -t "$doc/docs" docs/*.md
gzip -9nc CHANGELOG.md | install -Dm644 /dev/stdin "$doc/changelog.gz"
"$tree/usr/bin/tsimd" --print-root-drop-in | install -Dm644 /dev/stdin "$doc/examples/root.conf"
for facts in corp10 small3; do
    install -Dm644 -t "$doc/examples/$facts" netns-fixtures/"$facts"/*
done
{
    printf 'tsim is licensed under MIT or Apache-2.0, at your option. It links libnftnl, which is\n'
    printf 'GPL-2.0-or-later; the facts in examples/corp10 have their licence beside them.\n\n'
    cat LICENSE-MIT
    printf '\nThe Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0.\n'
} | install -Dm644 /dev/stdin "$doc/copyright"

# The packages of what the programs link, none older than what they were built with.
libraries() {
    local file package
    ldd "$tree"/usr/bin/tsim* | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | sort -u |
        while read -r file; do
            dpkg-query --search "*${file#/lib}" 2>/dev/null | sed -n '1s/:.*//p'
        done | sort -u |
        while read -r package; do
            dpkg-query --show --showformat='${Package} (>= ${source:Upstream-Version})\n' "$package"
        done | paste -sd, | sed 's/,/, /g'
}

mkdir "$tree/DEBIAN"
(cd "$tree" && find etc usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
printf '/etc/tsim/tsim.toml\n' >"$tree/DEBIAN/conffiles"
cat >"$tree/DEBIAN/control" <<CONTROL
Package: tsim
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: The tsim maintainers <tsim@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$tree" | cut -f1)
Depends: $(libraries), iptables, nftables, passwd
Recommends: ipset, iproute2
Suggests: bash-completion, man-db
Section: net
Priority: optional
Description: which services get through our firewalls, and which rule stops them
 Rebuilds routers from collected facts (addresses, routes, policy rules, iptables
 and nftables rulesets) as Linux network namespaces on one machine and measures in
 the real kernel which services get from a source to a destination.
CONTROL

cat >"$tree/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    # Whose labs and queue tsimd.service has; it is not started until somebody enables it.
    getent passwd tsim >/dev/null ||
        useradd --system --user-group --home-dir /var/lib/tsim --shell /usr/sbin/nologin tsim
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
fi
SCRIPT
cat >"$tree/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    if [ -d /run/systemd/system ]; then
        systemctl disable --now tsimd.service || true
    fi
    labs=$(tsim lab list 2>/dev/null || true)
    if [ -n "$labs" ]; then
        printf 'tsim: labs stay up until the machine is booted:\n%s\n' "$labs" >&2
    fi
fi
SCRIPT
cat >"$tree/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    # Results of queued jobs, and the registry of those that ran.
    rm -rf /var/lib/tsim /run/tsim
    rmdir /etc/tsim 2>/dev/null || true
    if getent passwd tsim >/dev/null; then
        userdel tsim || true
    fi
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
SCRIPT
chmod 755 "$tree"/DEBIAN/{postinst,prerm,postrm}

package=$out/tsim_${version}_$(dpkg --print-architecture).deb
rm -f "$out"/tsim_*.deb
dpkg-deb --root-owner-group --build "$tree" "$package" >/dev/null
echo "$package"
