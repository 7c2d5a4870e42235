//! `tsim what-if`: what a change would change.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use clap::Args;
use ipnet::IpNet;

use super::{
    How, Output,
    diff::{finish, measure, measure_made},
    questions::Questions,
};
use crate::{
    bulk::{
        diff,
        temporary::TemporaryLab,
        what_if::{self, NewRuleset, WhatIfError},
    },
    cli::{Context, Exit, Failure, Run},
    lab::{Lab, UpOptions},
    model::{LabName, RouterName},
    netns::tool::Tools,
};

const EXAMPLES: &str = "Examples:
  tsim what-if corp10 --router dc-srv --ruleset new-rules.txt --policy policy.toml
  tsim what-if corp10 --router fw1 --ruleset fw1.nft --networks -P @web,ssh -o comment.md
  tsim what-if corp10 --facts changed-routers --policy policy.toml --json
  tsim what-if corp10 --router hq-gw --route 'replace 10.2.0.0/16 via 10.1.1.3' -s 10.1.1.100 -d 10.2.1.60 -P 443

--ruleset is what iptables-save or `nft list ruleset` prints, and takes the place of the router's own of \
that kind (--ruleset6 that of ip6tables-save); its other rulesets stay. --route is a command of ip-route(8) \
and may be repeated. --facts is a directory with the facts of one router or of several, which take the place \
of those with the same file name.

The lab is asked what it does now; the change is asked of a lab of its own that is made from the lab's facts \
with the change in them, and goes with the command. The lab itself is not touched. What somebody changed by \
hand in the lab since it was brought up is no part of that other lab.

Exit code 0: no verdict would change; 1: some would; 3: none is known to, but something is UNKNOWN.";

/// Say which services a change of rulesets, routes or facts would break or open, before it is made
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct WhatIf {
    /// The lab as it is
    lab: LabName,

    /// The router that --ruleset and --route are about
    #[arg(long, value_name = "NAME")]
    router: Option<RouterName>,

    /// Another ruleset: what iptables-save or `nft list ruleset` prints
    #[arg(long, value_name = "FILE", requires = "router")]
    ruleset: Option<PathBuf>,

    /// Another ruleset: what ip6tables-save prints
    #[arg(long, value_name = "FILE", requires = "router")]
    ruleset6: Option<PathBuf>,

    /// A change of routes, as ip-route(8) takes it: `replace 10.0.0.0/8 via 10.1.1.1`
    #[arg(long, value_name = "COMMAND", requires = "router")]
    route: Vec<RouteChange>,

    /// Other facts of some routers
    #[arg(long, value_name = "DIR")]
    facts: Option<PathBuf>,

    #[command(flatten)]
    questions: Questions,

    #[command(flatten)]
    how: How,

    #[command(flatten)]
    output: Output,
}

/// A command of ip-route(8), in words.
#[derive(Debug, Clone)]
struct RouteChange(Vec<String>);

impl FromStr for RouteChange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const ALLOWED: [&str; 6] = ["add", "append", "change", "delete", "del", "replace"];
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        match words.first() {
            Some(first) if ALLOWED.contains(&first.as_str()) && words.len() > 1 => Ok(Self(words)),
            _ => Err(format!(
                "{text:?}: one of {} and a route is wanted, as in `replace 10.0.0.0/8 via 10.1.1.1`",
                ALLOWED.join(", ")
            )),
        }
    }
}

impl Run for WhatIf {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        self.output.check(false)?;
        let changes = self.changes();
        if changes.is_empty() {
            return Err(Failure::usage(
                "what is to be changed? --ruleset, --ruleset6 or --route with --router, or --facts",
            ));
        }
        let config = &context.config;
        let lab = Lab::open(config, &self.lab)?;
        let pairs = self.questions.pairs(Some(&lab), context)?.ok_or_else(|| {
            Failure::usage(
                "what is to be asked? Give -s, -d and -P, --networks and -P, or --policy",
            )
        })?;
        let facts = what_if::facts(config, &lab, self.facts.as_deref(), &self.rulesets())?;
        let options = UpOptions {
            strict: false,
            legacy: lab.legacy,
        };
        let changed = TemporaryLab::up(config, "if", facts.path(), options)?;
        if let Some(router) = &self.router {
            self.route(&Lab::open(config, changed.name())?, router, context)?;
        }
        let before = measure(&self.lab, &self.how, &pairs, context)?;
        let mut after = measure_made(&changed, &self.how, &pairs, context)?;
        after.rename(&format!("{}/", facts.path().display()), "changed ");
        after.head.lab.name = format!("{} if changed", self.lab);
        after.head.lab.facts = before.head.lab.facts.clone();
        finish(&self.output, context, &diff::diff(&before, &after, changes))
    }
}

impl WhatIf {
    /// The changes in words.
    fn changes(&self) -> Vec<String> {
        let router = self.router.as_ref().map_or("", |router| router.as_str());
        let rulesets = self.ruleset.iter().chain(&self.ruleset6);
        let rulesets = rulesets.map(|file| format!("{router} had the ruleset {}", file.display()));
        let routes = self.route.iter();
        let routes = routes.map(|change| format!("{router} did `ip route {}`", change.0.join(" ")));
        let facts = self.facts.iter();
        let facts = facts.map(|dir| format!("routers had the facts in {}", dir.display()));
        rulesets.chain(routes).chain(facts).collect()
    }

    fn rulesets(&self) -> Vec<NewRuleset> {
        let Some(router) = &self.router else {
            return Vec::new();
        };
        let one = |file: &PathBuf, v6| NewRuleset {
            router: router.clone(),
            file: file.clone(),
            v6,
        };
        let v4 = self.ruleset.iter().map(|file| one(file, false));
        v4.chain(self.ruleset6.iter().map(|file| one(file, true)))
            .collect()
    }

    /// Changes the routes of the router in the lab that goes with this command.
    fn route(&self, changed: &Lab, router: &RouterName, context: &Context) -> Result<(), Failure> {
        let netns = changed.router_netns(router)?;
        let tools = Tools::new(context.config.tool_dirs.clone());
        for RouteChange(words) in &self.route {
            let mut arguments = vec![if is_v6(words) { "-6" } else { "-4" }, "route"];
            arguments.extend(words.iter().map(String::as_str));
            let ran = netns.enter(|| tools.run("ip", &arguments, &[]));
            let ran = ran.map_err(Failure::cannot_run)?;
            ran.map_err(|error| {
                Failure::usage(format!(
                    "--route {:?} of {router}: {error}",
                    words.join(" ")
                ))
            })?;
        }
        Ok(())
    }
}

/// Whether the words of a route are of IPv6: by the first address or prefix that does not say its own family
/// (`via inet6 2001:db8::1` stands in a route of IPv4).
fn is_v6(words: &[String]) -> bool {
    let address = |word: &str| {
        let address = word.parse::<IpAddr>().ok();
        address.or_else(|| word.parse::<IpNet>().ok().map(|net| net.addr()))
    };
    let before = std::iter::once("").chain(words.iter().map(String::as_str));
    let mut plain = before
        .zip(words)
        .filter(|(before, _)| !["inet", "inet6"].contains(before));
    let first = plain.find_map(|(_, word)| address(word));
    first.is_some_and(|address| address.is_ipv6())
}

impl From<WhatIfError> for Failure {
    fn from(error: WhatIfError) -> Self {
        match error {
            WhatIfError::Lab(error) => error.into(),
            WhatIfError::Temporary(error) => error.into(),
            WhatIfError::Copy { .. } => Self::cannot_run(error),
            other => Self::usage(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routes_family_is_that_of_its_first_address() {
        for (route, v6) in [
            ("replace 10.0.0.0/8 via 10.1.1.1", false),
            (
                "replace 2001:db8:0:1:0:0:0:0/64 via 2001:db8:0:1:0:0:0:1",
                true,
            ),
            ("replace default via 2001:db8:1:2:3:4:5:6", true),
            ("replace 10.0.0.0/8 via inet6 fe80::1 dev eth0", false),
            ("replace default dev eth0", false),
        ] {
            let RouteChange(words) = route.parse().unwrap();
            assert_eq!(is_v6(&words), v6, "{route}");
        }
    }

    #[test]
    fn only_changes_of_routes_are_taken() {
        let change = |text: &str| text.parse::<RouteChange>();
        assert!(change("replace 10.0.0.0/8 via 10.1.1.1").is_ok());
        for wrong in ["", "show", "flush all", "-batch x", "replace"] {
            assert!(change(wrong).unwrap_err().contains("replace"), "{wrong}");
        }
    }
}
