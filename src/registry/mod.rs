//! The registry: hosts, leases, DSCP values, router locks and waiters, safe across processes and crashes.
