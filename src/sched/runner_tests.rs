use std::os::unix::process::ExitStatusExt;

use super::*;

#[test]
fn the_end_of_a_runner_is_said_in_words() {
    let said = |raw| describe(Some(ExitStatus::from_raw(raw)));
    assert_eq!(said(4 << 8), "the runner ended with exit code 4");
    assert_eq!(said(libc::SIGKILL), "the runner was ended by SIGKILL");
    assert_eq!(said(libc::SIGXFSZ), "the runner wrote more than it may");
    // A real-time signal has no name.
    assert_eq!(said(40), "the runner was ended by 40");
    assert_eq!(
        describe(None),
        "the runner ended while no scheduler watched it"
    );
}

#[test]
fn a_machine_that_is_full_is_asked_again_and_a_missing_program_is_not() {
    let spawn = |errno| StartError::Spawn {
        program: "/nowhere".into(),
        source: io::Error::from_raw_os_error(errno),
    };
    let full = [libc::EAGAIN, libc::ENOMEM, libc::ENFILE, libc::ENOSPC];
    assert!(full.into_iter().all(|errno| spawn(errno).is_transient()));
    let wrong = [libc::ENOENT, libc::EACCES, libc::ENOEXEC];
    assert!(!wrong.into_iter().any(|errno| spawn(errno).is_transient()));
    assert!(!StartError::Alive("r1".parse().unwrap()).is_transient());
}
