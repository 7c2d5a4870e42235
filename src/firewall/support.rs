//! Whether the kernel has a feature: asked of the kernel, never guessed from its version.

use crate::model::WithCauses;

/// What a probe found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// The kernel did it.
    Yes,
    /// The kernel said that it does not know this; with its words.
    No(String),
    /// It could not be found out, and nothing may be concluded from it; why.
    Unknown(String),
}

impl Support {
    /// Whether the kernel is known to have it.
    #[must_use]
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }

    /// Judges an attempt: success, an errno that means "not known", or anything else.
    pub(crate) fn from_attempt<E: std::error::Error + 'static>(
        attempt: Result<(), E>,
        errno: impl Fn(&E) -> Option<i32>,
    ) -> Self {
        let Err(error) = attempt else {
            return Self::Yes;
        };
        let text = WithCauses(&error).to_string();
        match errno(&error) {
            Some(errno) if MEANS_UNSUPPORTED.contains(&errno) => Self::No(text),
            _ => Self::Unknown(text),
        }
    }
}

/// What kernels answer to a protocol, message, expression, flag or link kind that they do not know.
const MEANS_UNSUPPORTED: [i32; 7] = [
    libc::EAFNOSUPPORT,
    libc::EINVAL,
    libc::ENOENT,
    libc::ENOPROTOOPT,
    libc::EOPNOTSUPP,
    libc::EPROTONOSUPPORT,
    libc::ENOSYS,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn judge(errno: i32) -> Support {
        Support::from_attempt(
            Err(io::Error::from_raw_os_error(errno)),
            io::Error::raw_os_error,
        )
    }

    #[test]
    fn only_a_clear_refusal_means_no() {
        assert!(matches!(judge(libc::EOPNOTSUPP), Support::No(text) if text.contains("95")));
        for errno in [libc::EPERM, libc::ENOMEM, libc::ENOBUFS, libc::EBUSY] {
            assert!(
                matches!(judge(errno), Support::Unknown(_)),
                "{errno} says nothing about the feature"
            );
        }
        assert!(Support::from_attempt(Ok::<(), io::Error>(()), |_| None).is_yes());
    }
}
