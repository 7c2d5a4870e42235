//! Links, addresses, routes, policy rules and neighbours of one namespace, over rtnetlink(7).

pub mod object;
