//! Who is at the other end, and what they may do.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::StatusCode;

use super::error::ApiError;
use crate::sched::{door::Caller, job::UserName};

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// Came by the unix socket: a user of this machine, by the kernel's word.
    Local(Caller),
    /// Came by TCP. From this machine it has a user, who counts for limits and for nothing else.
    Remote { address: IpAddr, user: Option<u32> },
}

/// To whom connections and requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Account {
    Address(IpAddr),
    User(u32),
}

impl Peer {
    pub(super) fn account(&self) -> Account {
        match self {
            Self::Local(caller) => Account::User(caller.uid),
            Self::Remote {
                user: Some(user), ..
            } => Account::User(*user),
            Self::Remote { address, .. } => Account::Address(*address),
        }
    }
}

/// What a request may do and see.
#[derive(Debug, Clone)]
pub(super) struct Rights {
    /// The user, where the kernel says who it is.
    pub(super) user: Option<UserName>,
    /// Everything, of everybody.
    pub(super) all: bool,
    /// Everybody's results.
    pub(super) all_results: bool,
}

impl Rights {
    /// Of a user of this machine.
    pub(super) fn of(caller: &Caller, shared: bool) -> Self {
        let name = UserName::new(caller.name.clone());
        let name = name.or_else(|_| UserName::new(format!("uid {}", caller.uid)));
        Self {
            user: name.ok(),
            all: caller.admin,
            all_results: caller.admin || shared,
        }
    }

    /// Of whoever has the token, or has none.
    pub(super) fn by_token(token: bool, shared: bool) -> Self {
        Self {
            user: None,
            all: token,
            all_results: token || shared,
        }
    }

    pub(super) fn may_submit(&self) -> bool {
        self.all || self.user.is_some()
    }

    pub(super) fn may_end(&self, owner: &UserName) -> bool {
        self.all || self.user.as_ref() == Some(owner)
    }

    pub(super) fn sees_result_of(&self, owner: &UserName) -> bool {
        self.all_results || self.may_end(owner)
    }

    /// On whose behalf something is done: the user's own, and others' only for who may do everything.
    pub(super) fn name(&self, given: Option<UserName>) -> Result<UserName, ApiError> {
        match (given, &self.user) {
            (None, Some(user)) => Ok(user.clone()),
            (Some(given), Some(user)) if given == *user => Ok(given),
            (Some(given), _) if self.all => Ok(given),
            (Some(given), _) => Err(ApiError {
                field: Some("username"),
                ..ApiError::new(
                    StatusCode::FORBIDDEN,
                    format!("username {given} is somebody else: leave it out"),
                )
            }),
            (None, None) => Err(ApiError::of_field(
                Some("username"),
                "username is missing".to_owned(),
            )),
        }
    }
}

/// How many connections each account has.
#[derive(Debug)]
pub(super) struct Crowd {
    most: usize,
    counts: Mutex<HashMap<Account, usize>>,
}

/// One connection of an account, counted as long as this lives.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    crowd: Arc<Crowd>,
    account: Account,
}

impl Crowd {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            counts: Mutex::default(),
        }
    }

    /// None when the account has as many as it may. Root is nobody's rival.
    pub(super) fn enter(self: &Arc<Self>, account: Account) -> Option<ConnectionSlot> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(account).or_default();
        if *count >= self.most && account != Account::User(0) {
            return None;
        }
        *count += 1;
        Some(ConnectionSlot {
            crowd: Arc::clone(self),
            account,
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let counts = &self.crowd.counts;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str, admin: bool) -> Caller {
        Caller {
            uid: 1000,
            name: name.to_owned(),
            admin,
        }
    }

    fn name(name: &str) -> UserName {
        UserName::new(name).unwrap()
    }

    #[test]
    fn users_have_what_is_theirs_and_administrators_all() {
        let ann = Rights::of(&caller("ann", false), false);
        assert!(ann.may_submit() && ann.may_end(&name("ann")) && !ann.may_end(&name("bob")));
        assert!(ann.sees_result_of(&name("ann")) && !ann.sees_result_of(&name("bob")));
        assert_eq!(ann.name(None).unwrap(), name("ann"));
        assert_eq!(ann.name(Some(name("ann"))).unwrap(), name("ann"));
        let refused = ann.name(Some(name("bob"))).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);

        let shared = Rights::of(&caller("ann", false), true);
        assert!(shared.sees_result_of(&name("bob")) && !shared.may_end(&name("bob")));
        let root = Rights::of(&caller("root", true), false);
        assert!(root.may_end(&name("bob")) && root.sees_result_of(&name("bob")));
        assert_eq!(root.name(Some(name("bob"))).unwrap(), name("bob"));
        let nobody = Rights::by_token(false, false);
        assert!(!nobody.may_submit() && !nobody.sees_result_of(&name("ann")));
        assert!(Rights::by_token(true, false).name(None).is_err());
    }

    #[test]
    fn one_accounts_connections_are_not_anothers() {
        let crowd = Arc::new(Crowd::new(2));
        let (ann, bob) = (Account::User(1000), Account::User(1001));
        let places: Vec<_> = (0..2).map(|_| crowd.enter(ann).unwrap()).collect();
        assert!(crowd.enter(ann).is_none());
        assert!(crowd.enter(bob).is_some());
        drop(places);
        assert!(crowd.enter(ann).is_some());
        assert!(crowd.counts.lock().unwrap().is_empty());
    }
}
