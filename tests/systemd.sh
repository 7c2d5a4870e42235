#!/usr/bin/env bash
# Starts the scheduler by its units under a systemd of its own: without root, with the drop-in as root,
# and again after it was killed.
#
#   tests/systemd.sh DIRECTORY
#
# The directory is a root with systemd, dbus and tsim's package in it; it is changed. systemd is the first
# process of a pid namespace there, with mounts, a network, control groups and a /run of its own.
set -euo pipefail
root=$(realpath "$1")

# shellcheck disable=SC2016 # the inner shell expands these
unshare --mount --pid --fork --net --uts --ipc --cgroup --propagation private bash -euc '
    root=$1
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=755 tmpfs dev
    for device in null zero full random urandom tty; do
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir -p dev/shm old
    mount -t tmpfs tmpfs dev/shm
    ln -s /proc/self/fd dev/fd
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    pivot_root . old
    umount -l /old
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=basic.target systemd.unified_cgroup_hierarchy=1
' bash "$root" &
booting=$!
trap 'kill -KILL "$(pgrep -P $booting)"' EXIT

inside() { nsenter --target "$(pgrep -P $booting)" --mount --pid --net --uts --ipc --cgroup "$@"; }
# It can be asked once it has made its socket.
for _ in $(seq 100); do
    state=$(inside systemctl is-system-running --wait 2>/dev/null) || true
    case $state in running | degraded) break ;; esac
    sleep 0.1
done

# shellcheck disable=SC2016 # the inner shell expands these
inside bash -euxc '
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
    facts=/usr/share/doc/tsim/examples/small3
    ask="--lab small3 -s 10.81.1.10 -d 10.81.3.10 -P 22,23"
    # One service passes, the other does not: code 1.
    some_no() { local code=0; "$@" || code=$?; test $code -eq 1; }
    # job COMMAND_PREFIX… MODE RUN-ID OPTION…: submitted, and watched to its end.
    job() { local mode=$1 id=$2; shift 2; "${as[@]}" tsim submit "$mode" $ask --run-id "$id" "$@"; some_no "${as[@]}" tsim watch "$id"; }

    systemctl start tsimd
    test "$(systemctl show tsimd -p User -p StatusText | sort | tr "\n" " ")" = "StatusText=Leading User=tsim "
    as=(runuser -u tsim --)
    "${as[@]}" tsim lab up small3 --facts $facts
    job quick u1
    # A job and its result outlive the scheduler; so do the labs, whose keeper is not its child.
    systemctl restart tsimd
    some_no "${as[@]}" tsim result u1
    job detailed u2 --routers r1
    "${as[@]}" tsim lab down small3
    systemctl stop tsimd

    mkdir /etc/systemd/system/tsimd.service.d
    tsimd --print-root-drop-in >/etc/systemd/system/tsimd.service.d/root.conf
    systemctl daemon-reload
    rm -rf /run/tsim /run/tsimd /var/lib/tsim
    systemctl start tsimd
    test "$(systemctl show tsimd -p User --value)" = root
    as=()
    tsim lab up small3 --facts $facts
    job quick r1
    job quick r2 --backend iptables-nft
    job detailed r3 --routers r1
    # Killed, it comes again, and knows what was.
    killed=$(systemctl show tsimd -p MainPID --value)
    kill -KILL "$killed"
    until systemctl is-active tsimd && test "$(systemctl show tsimd -p MainPID --value)" != "$killed"; do
        sleep 0.2
    done
    some_no tsim result r1
    tsim lab down small3
    systemctl stop tsimd
    test -z "$(ip netns list)"
    rm -r /etc/systemd/system/tsimd.service.d
'
echo "tests/systemd.sh: started by its units, without root and as root"
