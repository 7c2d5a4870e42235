//! Requests per second and account, a user of this machine or an address: a bucket that holds a minute's worth.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::rights::Account;

/// How many seconds' worth may be used at once.
const BURST_SECONDS: f64 = 60.0;
/// Most accounts that are remembered; beyond, full buckets are forgotten.
const ACCOUNTS: usize = 4096;

/// Limits requests by account.
#[derive(Debug)]
pub(super) struct Limiter {
    per_second: f64,
    buckets: Mutex<HashMap<Account, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Limiter {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            per_second: f64::from(per_second),
            buckets: Mutex::new(HashMap::new()),
        }
    }

    pub(super) fn admit(&self, account: Account) -> bool {
        self.admit_at(account, Instant::now())
    }

    fn admit_at(&self, account: Account, now: Instant) -> bool {
        let full = self.per_second * BURST_SECONDS;
        let left = |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + since * self.per_second).min(full)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= ACCOUNTS && !buckets.contains_key(&account) {
            buckets.retain(|_, bucket| left(bucket) < full);
            if buckets.len() >= ACCOUNTS {
                return false;
            }
        }
        let bucket = buckets.entry(account).or_insert(Bucket {
            left: full,
            at: now,
        });
        let left = left(bucket);
        let admitted = left >= 1.0;
        *bucket = Bucket {
            left: if admitted { left - 1.0 } else { left },
            at: now,
        };
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;

    #[test]
    fn a_minutes_worth_at_once_then_the_rate() {
        let limiter = Limiter::new(2);
        let (now, me) = (Instant::now(), Account::User(1000));
        let admitted = (0..500).filter(|_| limiter.admit_at(me, now)).count();
        assert_eq!(admitted, 120);
        assert!(limiter.admit_at(Account::User(1001), now));
        let later = now + Duration::from_secs(3);
        let admitted = (0..500).filter(|_| limiter.admit_at(me, later)).count();
        assert_eq!(admitted, 6);
    }

    #[test]
    fn a_flood_of_addresses_does_not_fill_the_memory() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        let address = |n: u32| Account::Address(IpAddr::from(n.to_be_bytes()));
        let admitted = (0..10_000)
            .filter(|n| limiter.admit_at(address(*n), now))
            .count();
        assert_eq!(admitted, ACCOUNTS);
        let later = now + Duration::from_secs(60);
        assert!(limiter.admit_at(address(20_000), later));
        assert_eq!(limiter.buckets.lock().unwrap().len(), 1);
    }
}
