//! seccomp(2): system calls that a child may not make, from its first instruction on.
#![allow(unsafe_code)]

use std::{io, os::unix::process::CommandExt, process::Command};

use libc::{c_long, sock_filter, sock_fprog};

/// `AUDIT_ARCH_…` of this build, linux/audit.h: system calls have other numbers on another.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Where `struct seccomp_data` (linux/seccomp.h) has what is compared; arguments are of 8 bytes,
/// and this is the half with the low bits on machines that are little-endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = 24;

/// Calls that no loader of rulesets makes and that reach out of it: new processes, other
/// processes, mounts, namespaces, modules, programs for the kernel.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const DENIED: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_clone,
    libc::SYS_connect,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_reboot,
];

/// Keeps the child, and what it becomes, from starting processes, from making sockets other than
/// netlink and raw ones, and from the calls in [`DENIED`]: they fail with `EPERM`. Kernels without
/// seccomp filters, and architectures whose numbers are not known here, let the child do as before.
pub fn confine(command: &mut Command) -> &mut Command {
    let filter = filter();
    let enter = move || install(&filter);
    // SAFETY: between fork and exec only the calling thread exists, so the closure must neither
    // allocate nor lock: it makes two system calls with memory that was made before the fork, and
    // an Errno becomes an io::Error without allocation.
    unsafe { command.pre_exec(enter) }
}

/// Whether the running kernel takes filters.
#[must_use]
pub fn is_available() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads one integer (seccomp(2), SECCOMP_GET_ACTION_AVAIL).
    let found = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    found == 0 && !filter().is_empty()
}

fn install(filter: &[sock_filter]) -> io::Result<()> {
    let Ok(len) = u16::try_from(filter.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if len == 0 {
        return Ok(());
    }
    // SAFETY: no pointers; without this only CAP_SYS_ADMIN may set a filter.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let program = sock_fprog {
        len,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points to as many instructions as it says, and the kernel copies them.
    let set = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    match io::Error::last_os_error() {
        _ if set == 0 => Ok(()),
        e if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(()),
        e => Err(e),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn filter() -> Vec<sock_filter> {
    Vec::new()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn filter() -> Vec<sock_filter> {
    let deny = answer(libc::EPERM);
    let mut program = vec![
        load(ARCH),
        unless_equal(ARCHITECTURE, 0, 1),
        skip(1),
        deny,
        load(NUMBER),
        // The x32 variants of all calls, asm/unistd.h.
        unless_at_least(0x4000_0000, 1),
        deny,
    ];
    // glibc starts processes and threads with clone where there is no clone3; its flags are in
    // memory, where no filter can look.
    program.extend([
        unless_equal(number(libc::SYS_clone3), 0, 1),
        answer(libc::ENOSYS),
    ]);
    for call in DENIED {
        program.extend([unless_equal(number(*call), 0, 1), deny]);
    }
    // Behind this only sockets are of interest.
    program.extend([
        unless_equal(number(libc::SYS_socket), 1, 0),
        allow(),
        load(FIRST_ARGUMENT),
        unless_equal(libc::AF_NETLINK.cast_unsigned(), 0, 1),
        allow(),
        // iptables-legacy talks to the kernel through a raw socket of the family.
        unless_equal(libc::AF_INET.cast_unsigned(), 1, 0),
        unless_equal(libc::AF_INET6.cast_unsigned(), 0, 3),
        load(SECOND_ARGUMENT),
        masked(0xf),
        unless_equal(libc::SOCK_RAW.cast_unsigned(), 1, 0),
        deny,
        allow(),
    ]);
    program
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // The codes are all below 256.
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    sock_filter { code, jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn masked(mask: u32) -> sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

/// Skips `equal` instructions where the value is `k`, `other` where it is not.
fn unless_equal(k: u32, equal: u8, other: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, equal, other, k)
}

/// Skips `below` instructions where the value is below `k`.
fn unless_at_least(k: u32, below: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, below, k)
}

fn skip(count: u32) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, count)
}

fn allow() -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW)
}

fn answer(errno: i32) -> sock_filter {
    let action = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(program: &str, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(program);
        confine(command.args(arguments)).output().unwrap()
    }

    #[test]
    fn a_confined_program_works_and_starts_no_other() {
        assert!(is_available());
        let output_of = |script| output("/bin/sh", &["-c", script]);
        let well = output_of("echo one; read line < /etc/passwd; exec echo two");
        assert_eq!(well.stdout, b"one\ntwo\n");
        let forks = output_of("/bin/true; echo after");
        assert!(
            !String::from_utf8_lossy(&forks.stderr).is_empty(),
            "{forks:?}"
        );
        assert_eq!(output_of("echo $(echo inner)").stdout, b"");
    }

    #[test]
    fn a_confined_program_has_netlink_and_raw_sockets_only() {
        let script = "for ([16, 3], [2, 1], [2, 2], [1, 1], [10, 2]) {\
            print socket(my $s, $$_[0], $$_[1], 0) ? 'yes ' : $!+0 . ' ' }";
        let output = output("/usr/bin/perl", &["-e", script]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), "yes 1 1 1 1", "{output:?}");
    }
}
