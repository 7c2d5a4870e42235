//! What a router takes for itself, and by which rule.

use super::Bench;
use crate::{
    firewall::rule::Rule,
    run::detailed::{
        result::{Direction, RouterTest, Step},
        site::{Sink, Task},
    },
};

impl Bench<'_> {
    /// That a service ends on a router itself, and what took it there; none where it was for an
    /// address of the router to begin with.
    pub(super) fn taken(&self, task: &Task, tests: &[RouterTest]) -> Option<String> {
        let sink = &self.site.target.sink;
        let Sink::Router { router, proxy, .. } = sink else {
            return None;
        };
        if let Some(proxy) = proxy {
            let (port, protocol) = (proxy.port, task.service.protocol);
            return Some(format!(
                "it ends on the router itself, taken by TPROXY to port {port}/{protocol} by {}",
                proxy.rule
            ));
        }
        let at = self
            .site
            .target
            .listen_at(task)
            .filter(|_| task.moves > 0)?;
        let test = tests.iter().find(|test| test.router == *router)?;
        let requests = test.trace.iter();
        let mut requests = requests.filter(|way| way.direction == Direction::Request);
        let step = requests.find_map(|way| way.steps.iter().rfind(|step| redirects(step)));
        let by = step.map_or(String::new(), |step| format!(", taken by {}", place(step)));
        Some(format!("it ends on the router itself, at {at}{by}"))
    }
}

/// Whether a rule gave the packet another destination.
fn redirects(step: &Step) -> bool {
    let rule = Rule::of(&step.rule);
    let translation = rule.translation();
    step.position.is_some() && translation.is_some_and(|translation| !translation.source)
}

/// As rules are named elsewhere: `rule 1 of chain pre (table ip nat): …`.
fn place(step: &Step) -> String {
    let Step {
        position,
        family,
        table,
        chain,
        rule,
        ..
    } = step;
    let position = position.unwrap_or_default();
    format!("rule {position} of chain {chain} (table {family} {table}): {rule}")
}
