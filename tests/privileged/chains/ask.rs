//! The same chain as a lab made of the facts of its routers, and what the quick job says of it.

use std::{env, fs, process::Command};

use serde_json::Value;
use tsim::lab::{self, Lab};

use super::{
    plan::{Loader, Plan},
    truth::Chain,
    world::World,
};
use crate::support::Bed;

/// What a verdict from end to end is.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) result: String,
    /// The status, which a detailed job alone gives.
    pub(super) status: String,
    pub(super) end: String,
    pub(super) router: String,
    pub(super) reason: String,
}

/// A lab, with a registry of its own.
pub(super) struct Rebuilt {
    bed: Bed,
    dir: tempfile::TempDir,
    _lab: Lab,
}

impl Rebuilt {
    /// Collects the facts of the chain's routers and makes a lab of them.
    pub(super) fn of(plan: &Plan, chain: &Chain, world: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let facts = dir.path().join("facts");
        fs::create_dir(&facts).unwrap();
        for node in &world.routers {
            let file = facts.join(format!("{}_facts.txt", node.name));
            fs::write(file, chain.facts(plan, &node.name)).unwrap();
        }
        if let Some((segment, router)) = &world.gateway {
            let text = format!("[[gateway]]\nsegment = {segment:?}\nrouter = {router:?}\n");
            fs::write(facts.join("links.toml"), text).unwrap();
        }
        let config = dir.path().join("tsim.toml");
        let place = |name: &str| dir.path().join(name);
        let text = format!(
            "registry_dir = {:?}\nlabs_dir = {:?}\n",
            place("registry"),
            place("labs")
        );
        fs::write(&config, text).unwrap();
        let bed = Bed::new();
        let config = tsim::config::Config {
            registry_dir: place("registry"),
            labs_dir: place("labs"),
            ..tsim::config::Config::default()
        };
        let options = lab::UpOptions {
            legacy: plan.loader == Loader::IptablesLegacy,
            ..lab::UpOptions::default()
        };
        let up = lab::up_from(&config, &bed.lab, &facts, options, &()).unwrap();
        Self {
            bed,
            dir,
            _lab: up.lab,
        }
    }

    /// Asks about all services of the plan; the verdicts from end to end, in the order asked.
    pub(super) fn ask(
        &self,
        plan: &Plan,
        world: &World,
        from: Option<&str>,
        forgotten: Option<&str>,
    ) -> Result<Vec<Answer>, String> {
        let mut command = self.command(env!("CARGO_BIN_EXE_tsim-quick"), plan, world, from);
        command.args(["--probe-dscp", &plan.dscp.to_string()]);
        if let Some(forgotten) = forgotten {
            command.args(["--fault", &format!("forget@{forgotten}")]);
        }
        Self::answers(command, plan)
    }

    /// Asks the detailed job, which sends with the DSCP value 0.
    pub(super) fn ask_detailed(
        &self,
        plan: &Plan,
        world: &World,
        from: Option<&str>,
    ) -> Result<Vec<Answer>, String> {
        let program = env!("CARGO_BIN_EXE_tsim-detailed");
        Self::answers(self.command(program, plan, world, from), plan)
    }

    /// Has a shell run what the environment names in `TSIM_CHAINS_LOOK`, while the chain and its lab
    /// stand: `$CHAIN` and `$LAB` are what their namespaces begin with, and `$ASK` asks.
    pub(super) fn show(&self, plan: &Plan, chain: &Chain, world: &World, why: &str) {
        let Ok(text) = env::var("TSIM_CHAINS_LOOK") else {
            return;
        };
        let mut ask = self.command(env!("CARGO_BIN_EXE_tsim-quick"), plan, world, None);
        ask.args(["--probe-dscp", &plan.dscp.to_string()]);
        let words = std::iter::once(ask.get_program()).chain(ask.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", &text]).env("WHY", why);
        shell.env("CHAIN", chain.bed.lab.as_str());
        shell.env("LAB", self.bed.lab.as_str());
        let ended = shell.env("ASK", words.join(" ")).status().unwrap();
        assert!(ended.success(), "TSIM_CHAINS_LOOK: {ended}");
    }

    fn command(&self, program: &str, plan: &Plan, world: &World, from: Option<&str>) -> Command {
        let services: Vec<String> = plan.services.iter().map(ToString::to_string).collect();
        let (source, destination) = &world.asked;
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(self.dir.path().join("tsim.toml"))
            .args(["--lab", self.bed.lab.as_str(), "--json"])
            .args(["-s", source, "-d", destination])
            .args(["-P", &services.join(",")]);
        if let Some(size) = plan.size() {
            command.args(["--size", &size.to_string()]);
        }
        if let Some(from) = from {
            command.args(["--from", from]);
        }
        command
    }

    fn answers(mut command: Command, plan: &Plan) -> Result<Vec<Answer>, String> {
        let output = command.output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let ends = report["end_to_end"].as_array().cloned().unwrap_or_default();
        if ends.len() != plan.services.len() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = |end: &Value, key: &str| end[key].as_str().unwrap_or_default().to_owned();
        let one = |end: &Value| Answer {
            result: text(end, "result"),
            status: text(end, "status"),
            end: text(end, "end"),
            router: text(end, "router"),
            reason: text(end, "reason"),
        };
        Ok(ends.iter().map(one).collect())
    }
}
