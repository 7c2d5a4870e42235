//! How the allocator gets its memory.
#![allow(unsafe_code)]

/// Lets the allocator keep what is freed, and ask for more at a time, mallopt(3): what a job of 65,535
/// services holds comes and goes in pieces of megabytes, and each page that the kernel takes back and
/// gives again costs a fault. For a process that ends soon.
pub fn keep() {
    // The first is the most that glibc takes.
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_TOP_PAD, 1 << 20),
    ] {
        // SAFETY: changes a number in the allocator, under its own lock. A refusal changes nothing.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
