//! A thread that costs little to start, for one that only waits.
//!
//! The standard library gives each thread a second stack, on which it would tell of an overflow of the first, and
//! asks the C library for the bounds of that one. The answer is allocated, and with the first allocation of a
//! thread comes an arena of its own. All that is fifteen system calls.
#![allow(unsafe_code)]

use std::{io, mem::MaybeUninit, ptr};

/// The thread's stack: it prints a few lines.
const STACK: usize = 256 << 10;

/// Starts a thread that does `work`, and ends with the process if not before. It blocks the signals that the
/// calling thread blocks.
///
/// # Errors
/// When the system has no room for a thread.
pub fn start<W: Fn() + Send + Sync>(work: &'static W) -> io::Result<()> {
    let mut attributes = MaybeUninit::uninit();
    let mut thread = MaybeUninit::uninit();
    // SAFETY: the attributes are initialised before they are set and used, and destroyed afterwards. The thread
    // gets a pointer to what lives as long as the process and may be used by any thread, and `run` takes it for
    // what it is.
    let failed = unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        let failed = libc::pthread_create(
            thread.as_mut_ptr(),
            attributes.as_ptr(),
            run::<W>,
            ptr::from_ref(work).cast_mut().cast(),
        );
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        failed
    };
    match failed {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A panic in here ends the process: nobody would hear of it.
extern "C" fn run<W: Fn()>(work: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `start` gave a pointer to a `W` that lives as long as the process.
    let work = unsafe { &*work.cast::<W>() };
    work();
    ptr::null_mut()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_work_is_done_on_another_thread() {
        let (tell, told) = mpsc::channel();
        let work = Box::leak(Box::new(move || {
            let _ = tell.send(std::thread::current().id());
        }));
        start(work).unwrap();
        assert_ne!(told.recv().unwrap(), std::thread::current().id());
    }
}
