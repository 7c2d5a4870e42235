//! The kernel's own time zone.
#![allow(unsafe_code)]

use std::ptr;

/// `struct timezone` of gettimeofday(2), which the `libc` crate has without its fields.
#[repr(C)]
struct TimeZone {
    minutes_west: libc::c_int,
    dst: libc::c_int,
}

/// Whether the kernel takes the local time for UTC, as it does until somebody tells it otherwise. Rules
/// about days of the week go by that.
#[must_use]
pub fn is_utc() -> bool {
    let mut zone = TimeZone {
        minutes_west: 0,
        dst: 0,
    };
    let none = ptr::null_mut::<libc::timeval>();
    // SAFETY: the kernel writes two integers to where `zone` is, and nothing to the null pointer. The C
    // library's own call says zero whatever the kernel has.
    let done = unsafe { libc::syscall(libc::SYS_gettimeofday, none, &raw mut zone) };
    done == 0 && zone.minutes_west == 0
}
