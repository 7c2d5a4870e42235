//! Which back end measures, and the taps that it installed, whichever it was.
//!
//! nf_tables is used wherever the kernel has it. iptables is a fallback for kernels that say they
//! have not, or for people who ask for it; an error that nobody understood never leads there.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    firewall::{
        Reading, Support, Taps,
        iptables::{IptablesError, IptablesTaps, OwnerMark, Variant},
        nft::{NftError, NftSocket, NftTaps},
    },
    model::text_in_json,
    netns::{NetnsError, NetnsFd, tool::Tools},
};

/// What measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// nf_tables through netlink.
    Nft,
    /// `iptables-nft`: iptables rules in nf_tables.
    IptablesNft,
    /// `iptables-legacy`: iptables rules in the kernel's ip_tables.
    IptablesLegacy,
}

impl Backend {
    /// In the order in which [`BackendChoice::Auto`] tries them.
    pub const ALL: [Self; 3] = [Self::Nft, Self::IptablesNft, Self::IptablesLegacy];

    /// Its name, as an option's value and in results.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// The variant of iptables, where it is one.
    #[must_use]
    pub fn variant(self) -> Option<Variant> {
        match self {
            Self::Nft => None,
            Self::IptablesNft => Some(Variant::Nft),
            Self::IptablesLegacy => Some(Variant::Legacy),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which back end somebody wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String", extend("enum" = ["auto", "nft", "iptables-nft", "iptables-legacy"]))]
pub enum BackendChoice {
    /// The first that the kernel supports.
    #[default]
    Auto,
    /// This one and no other.
    Only(Backend),
}

/// Text that is no [`BackendChoice`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("back end {0:?} is not allowed: auto, nft, iptables-nft or iptables-legacy is")]
pub struct BackendChoiceError(String);

impl FromStr for BackendChoice {
    type Err = BackendChoiceError;
    fn from_str(text: &str) -> Result<Self, BackendChoiceError> {
        let one = Backend::ALL.into_iter().find(|b| b.as_str() == text);
        match one {
            Some(backend) => Ok(Self::Only(backend)),
            None if text == "auto" => Ok(Self::Auto),
            None => Err(BackendChoiceError(text.to_owned())),
        }
    }
}

text_in_json!(BackendChoice);

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(backend) => backend.fmt(f),
        }
    }
}

/// No back end could be chosen.
#[derive(Debug, Error)]
pub enum ChooseError {
    /// It is not known whether the kernel has this one, so none behind it may be used.
    #[error("cannot tell whether back end {backend} is supported: {why}; name one with --backend")]
    Unknown {
        /// The back end.
        backend: Backend,
        /// Why it could not be found out.
        why: String,
    },
    /// There is none.
    #[error("no back end is supported: {}", .0.iter().map(|(b, why)| format!("{b}: {why}")).collect::<Vec<_>>().join("; "))]
    None(Vec<(Backend, String)>),
}

/// Chooses the back end. `probe` looks whether one is supported; it is asked only in `auto`, and
/// no further than to the first answer that is not [`Support::No`].
///
/// # Errors
/// [`ChooseError`].
pub fn choose(
    choice: BackendChoice,
    mut probe: impl FnMut(Backend) -> Support,
) -> Result<Backend, ChooseError> {
    if let BackendChoice::Only(backend) = choice {
        return Ok(backend);
    }
    let mut missing = Vec::new();
    for backend in Backend::ALL {
        match probe(backend) {
            Support::Yes => return Ok(backend),
            Support::No(why) => missing.push((backend, why)),
            Support::Unknown(why) => return Err(ChooseError::Unknown { backend, why }),
        }
    }
    Err(ChooseError::None(missing))
}

/// Where taps are installed, and by whom.
#[derive(Debug, Clone, Copy)]
pub struct TapSite<'a> {
    /// The router's namespace.
    pub netns: &'a Arc<NetnsFd>,
    /// Where `iptables-restore` and the like are.
    pub tools: &'a Tools,
    /// The process whose death makes the taps stale.
    pub owner: &'a OwnerMark,
    /// Where a job notes what its death would leave; none where nobody else reads notes.
    pub notes: Option<&'a Arc<dyn Notebook>>,
    /// How long to wait while another job changes the router's iptables.
    pub patience: Duration,
}

/// Where a job notes what its taps and traces in one router leave there if it is killed: it does so
/// before anything of it is made, and strikes the note when all of it is gone again.
///
/// `tool` says whose tables are meant, such as `ip6tables-nft`, or which setting, such as `nf_log-2`.
pub trait Notebook: fmt::Debug + Send + Sync {
    /// What other jobs have noted about these tables of this router.
    ///
    /// # Errors
    /// When it cannot be read.
    fn of_others(&self, tool: &str) -> Result<Vec<String>, NotebookError>;

    /// Notes that `made` comes into being with this job's taps.
    ///
    /// # Errors
    /// When it is not noted.
    fn note(&self, tool: &str, made: Vec<String>) -> Result<(), NotebookError>;

    /// Strikes the note.
    ///
    /// # Errors
    /// When it is there still.
    fn strike(&self, tool: &str) -> Result<(), NotebookError>;
}

/// Why something could not be noted, as the layer above words it.
pub type NotebookError = Box<dyn std::error::Error + Send + Sync>;

/// A back end failed.
#[derive(Debug, Error)]
pub enum TapsError {
    /// The router's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// nf_tables.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// iptables.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
}

/// The taps of one job on one router.
#[derive(Debug)]
pub enum InstalledTaps {
    /// In nf_tables.
    Nft(NftTaps),
    /// In iptables of either variant.
    Iptables(Box<IptablesTaps>),
}

impl InstalledTaps {
    /// Installs `taps` with `backend`. Who has sockets open already can make [`Self::Nft`] of
    /// [`NftTaps::install`] instead.
    ///
    /// # Errors
    /// [`TapsError`]; nothing is left behind then.
    pub fn install(backend: Backend, site: TapSite<'_>, taps: Taps) -> Result<Self, TapsError> {
        if let Some(variant) = backend.variant() {
            let installed = IptablesTaps::install(variant, site, taps)?;
            return Ok(Self::Iptables(Box::new(installed)));
        }
        let socket = site.netns.enter(NftSocket::open_here)??;
        Ok(Self::Nft(NftTaps::install(socket, taps)?))
    }

    /// What measures.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self {
            Self::Nft(_) => Backend::Nft,
            Self::Iptables(taps) => match taps.variant() {
                Variant::Nft => Backend::IptablesNft,
                Variant::Legacy => Backend::IptablesLegacy,
            },
        }
    }

    /// How many probes may be sent before [`Self::collect`] has to make room; none where any number
    /// may, because a set in the kernel takes them.
    #[must_use]
    pub fn probes_at_once(&self) -> Option<usize> {
        match self {
            Self::Nft(_) => None,
            Self::Iptables(taps) => Some(taps.probes_at_once()),
        }
    }

    /// Makes room for what the taps see next.
    ///
    /// # Errors
    /// [`TapsError`] when something they saw was lost.
    pub fn collect(&mut self) -> Result<(), TapsError> {
        match self {
            Self::Nft(_) => Ok(()),
            Self::Iptables(taps) => Ok(taps.collect()?),
        }
    }

    /// Reads what the taps saw so far.
    ///
    /// # Errors
    /// [`TapsError`].
    pub fn read(&mut self) -> Result<Reading, TapsError> {
        match self {
            Self::Nft(taps) => Ok(taps.read()?),
            Self::Iptables(taps) => Ok(taps.read()?),
        }
    }

    /// Removes the taps. What is returned beside the result is only to be dropped, when nobody
    /// waits any more: closing an nf_tables socket takes 10 to 16 ms.
    ///
    /// # Errors
    /// [`TapsError`]; taps that are already gone are no error.
    pub fn remove(self) -> (Option<NftSocket>, Result<(), TapsError>) {
        match self {
            Self::Nft(taps) => {
                let (socket, result) = taps.remove();
                (Some(socket), result.map_err(TapsError::from))
            }
            Self::Iptables(taps) => (None, taps.remove().map_err(TapsError::from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsupported() -> Support {
        Support::No("not built in".to_owned())
    }

    #[test]
    fn auto_falls_back_only_where_the_kernel_says_no() {
        let without_nf_tables = |backend| match backend {
            Backend::IptablesLegacy => Support::Yes,
            _ => unsupported(),
        };
        let chosen = choose(BackendChoice::Auto, without_nf_tables).unwrap();
        assert_eq!(chosen, Backend::IptablesLegacy);
        let chosen = choose(BackendChoice::Auto, |_| Support::Yes).unwrap();
        assert_eq!(chosen, Backend::Nft);
    }

    #[test]
    fn an_error_that_says_nothing_ends_the_search() {
        let mut asked = Vec::new();
        let error = choose(BackendChoice::Auto, |backend| {
            asked.push(backend);
            Support::Unknown("permission denied".to_owned())
        })
        .unwrap_err();
        assert_eq!(asked, [Backend::Nft]);
        assert!(error.to_string().contains("--backend"), "{error}");
    }

    #[test]
    fn none_at_all_says_why_for_each() {
        let error = choose(BackendChoice::Auto, |_| unsupported()).unwrap_err();
        for backend in Backend::ALL {
            assert!(
                error
                    .to_string()
                    .contains(&format!("{backend}: not built in"))
            );
        }
    }

    #[test]
    fn a_named_back_end_is_taken_without_asking() {
        for backend in Backend::ALL {
            let choice: BackendChoice = backend.as_str().parse().unwrap();
            let chosen = choose(choice, |_| panic!("asked")).unwrap();
            assert_eq!((chosen, choice.to_string()), (backend, backend.to_string()));
        }
        assert_eq!("auto".parse(), Ok(BackendChoice::Auto));
        assert!("iptables".parse::<BackendChoice>().is_err());
    }
}
