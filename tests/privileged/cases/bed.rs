//! The lab of a case: one router with its rules loaded, and a capture on all its segments.

use std::net::IpAddr;

use tsim::{
    config::Config,
    firewall::{TagSpace, backend::BackendChoice},
    model::{Dscp, RouterName},
    netlink::{
        Netlink,
        object::{Family, Mac, Neighbour},
        sysctl,
    },
    netns::{
        NetnsFd,
        tool::{ToolError, Tools},
    },
    run::{
        probe::Catalogue,
        quick::{DscpChoice, ExplainMode, QuickJob},
        report::{QuickReport, Verdict},
    },
};

use super::file::{CaseFile, Expected, Loader, Run};
use crate::{capture::Capture, quick::TestLab, support::ifname};

/// Nobody has this hardware address: what is sent to it is seen by the capture and by no router.
const NOBODY: Mac = Mac([0x02, 0, 0, 0, 0xff, 0xff]);
/// Where copies of packets are sent: not what a verdict is about.
const COPIES: Mac = Mac([0x02, 0, 0, 0, 0xff, 0xfe]);
/// Every table that a tap may use, so that with the legacy variant none comes into being.
const LEGACY_TABLES: &str = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*security\nCOMMIT\n";
const DSCP: u8 = 40;

pub(super) struct CaseBed {
    pub(super) lab: TestLab,
    router: NetnsFd,
    tools: Tools,
}

impl CaseBed {
    /// The router of a lab as it is.
    pub(super) fn of_lab(lab: TestLab) -> Self {
        let router = lab.lab.router_netns(&RouterName::new("r").unwrap());
        Self {
            router: router.unwrap(),
            tools: Tools::new(Config::default().tool_dirs),
            lab,
        }
    }

    pub(super) fn router(&self) -> &NetnsFd {
        &self.router
    }

    /// Routes of all tables and policy rules.
    pub(super) fn routes(&self, family: Family) -> String {
        let option = if family == Family::V4 { "-4" } else { "-6" };
        let shown = |args: &[&str]| {
            let text = self.tool("ip", &[&[option], args].concat(), "").unwrap();
            let mut lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
            lines.sort();
            lines.concat()
        };
        shown(&["-o", "route", "show", "table", "all"]) + &shown(&["rule", "show"])
    }

    /// A router as the case has it. A tool that refuses the rules is an error.
    pub(super) fn new(case: &CaseFile, loader: Loader, family: Family) -> Result<Self, ToolError> {
        let bed = Self::of_lab(TestLab::up("cases/lab"));
        let off = [
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/in/rp_filter", "0"),
            ("net/ipv4/conf/out/rp_filter", "0"),
            ("net/ipv4/conf/alt/rp_filter", "0"),
        ];
        sysctl::write(&bed.router, &off).unwrap();
        bed.neighbours();
        // Where connection tracking is a module, its settings come with the first rule.
        let settings = case.sysctl.iter().map(|(p, v)| (p.as_str(), v.as_str()));
        let (conntrack, others): (Vec<_>, Vec<_>) =
            settings.partition(|(path, _)| path.starts_with("net/netfilter/nf_conntrack_"));
        sysctl::write(&bed.router, &others).unwrap();
        for line in case.ip(family) {
            let words = line.split_whitespace();
            let option = if family == Family::V4 { "-4" } else { "-6" };
            let args: Vec<&str> = std::iter::once(option).chain(words).collect();
            bed.tool("ip", &args, "")?;
        }
        if let Some(sets) = case.ipset(family) {
            bed.tool("ipset", &["restore"], &sets)?;
        }
        let rules = case.rules(loader, family);
        match loader {
            Loader::Nft => bed.tool("nft", &["-f", "-"], &rules)?,
            _ => bed.tool(&xtables(loader, family, "restore"), &["--noflush"], &rules)?,
        };
        sysctl::write(&bed.router, &conntrack).unwrap();
        if loader == Loader::IptablesLegacy {
            let restore = xtables(loader, family, "restore");
            bed.tool(&restore, &["--noflush"], LEGACY_TABLES)?;
        }
        Ok(bed)
    }

    /// A router with the case's rules of iptables as `iptables-restore-translate` puts them into
    /// nft's words; none where it has no words for some of them, or nft refuses them.
    pub(super) fn translated(case: &CaseFile, family: Family) -> Option<Self> {
        let tools = Tools::new(Config::default().tool_dirs);
        let tool = match family {
            Family::V4 => "iptables-restore-translate",
            Family::V6 => "ip6tables-restore-translate",
        };
        // As saved: the translator makes only chains that are declared.
        let loaded = Self::new(case, Loader::IptablesNft, family).ok()?;
        let save = xtables(Loader::IptablesNft, family, "save");
        let rules = loaded.tool(&save, &[], "").ok()?;
        let printed = tools
            .run(tool, &["-f", "/dev/stdin"], rules.as_bytes())
            .ok()?;
        let text = String::from_utf8(printed.stdout).unwrap();
        // A rule without a translation comes as a comment.
        let whole = !text.lines().any(|line| line.starts_with("# -"));
        let bed = Self::new(&case.with_rules(text), Loader::Nft, family);
        bed.ok().filter(|_| whole)
    }

    fn neighbours(&self) {
        let mut netlink = Netlink::open(&self.router).unwrap();
        let mut batch = netlink.batch("case");
        for (dev, prefixes) in [
            ("out", ["10.9.0.", "2001:db8:b::"]),
            ("alt", ["10.8.0.", "2001:db8:c::"]),
        ] {
            for prefix in prefixes {
                for (host, mac) in [(2, NOBODY), (3, NOBODY), (7, NOBODY), (9, COPIES)] {
                    let address: IpAddr = format!("{prefix}{host}").parse().unwrap();
                    batch.replace_neighbour(&Neighbour::permanent(ifname(dev), address, mac));
                }
            }
        }
        batch.send().unwrap();
    }

    fn tool(&self, tool: &str, args: &[&str], input: &str) -> Result<String, ToolError> {
        let run = || self.tools.run(tool, args, input.as_bytes());
        let printed = self.router.enter(run).unwrap()?;
        Ok(String::from_utf8(printed.stdout).unwrap())
    }

    /// Everything that can be seen of the router's rules and sets, without counters, dates and the
    /// time that elements have left.
    pub(super) fn ruleset(&self, case: &CaseFile, loader: Loader, family: Family) -> String {
        let mut text = self.tool("nft", &["-s", "list", "ruleset"], "").unwrap();
        if loader != Loader::Nft {
            text += &self
                .tool(&xtables(loader, family, "save"), &[], "")
                .unwrap();
        }
        if case.ipset(family).is_some() {
            text += &self.tool("ipset", &["save"], "").unwrap();
        }
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let steady = lines.map(|line| match line.split_once(" [") {
            Some((chain, _)) if line.starts_with(':') => chain,
            _ if line.starts_with("add ") => line.split(" timeout ").next().unwrap(),
            _ => line,
        });
        steady.map(|line| format!("{line}\n")).collect()
    }

    fn job(&self, case: &CaseFile, run: Run, expected: &[Expected]) -> QuickJob {
        let (source, to) = (case.source(run.family), case.to(run.family));
        QuickJob {
            services: expected.iter().map(|e| e.service).collect(),
            dscp: DscpChoice::Value(Dscp::new(DSCP).unwrap()),
            probe_dscp: Dscp::new(case.dscp).unwrap(),
            explain: ExplainMode::Auto,
            backend: BackendChoice::Only(run.backend),
            use_registry: false,
            ..self.lab.job("r", &source.to_string(), &to.to_string(), "1")
        }
    }

    /// The job as it runs everywhere.
    pub(super) fn measure(&self, case: &CaseFile, run: Run, expected: &[Expected]) -> QuickReport {
        self.lab.run(&self.job(case, run, expected))
    }

    /// The job with probes that go on behind the taps, and whether a capture saw each of the
    /// services leave the router.
    ///
    /// All probes of a job have one source port. Where the router sends several services to one
    /// port, those that go on become one connection, and connection tracking drops the second at
    /// its end, which happens to no client. So what a capture must show of a YES it may show when
    /// the service is asked about alone.
    pub(super) fn captured(
        &self,
        case: &CaseFile,
        run: Run,
        expected: &[Expected],
    ) -> (QuickReport, Vec<Verdict>) {
        let (report, mut seen) = self.capture(case, run, expected, ExplainMode::Auto);
        let answers = report.routers[0].services.iter().zip(expected);
        for (seen, (answer, expected)) in seen.iter_mut().zip(answers) {
            if answer.result == Verdict::Yes && *seen == Verdict::No {
                let one = std::slice::from_ref(expected);
                *seen = self.capture(case, run, one, ExplainMode::Auto).1[0];
            }
        }
        (report, seen)
    }

    /// Whether one packet of a service that is sent once leaves the router.
    pub(super) fn one_packet(&self, case: &CaseFile, run: Run, expected: &Expected) -> Verdict {
        let one = std::slice::from_ref(expected);
        self.capture(case, run, one, ExplainMode::Never).1[0]
    }

    fn capture(
        &self,
        case: &CaseFile,
        run: Run,
        expected: &[Expected],
        explain: ExplainMode,
    ) -> (QuickReport, Vec<Verdict>) {
        let segments = self.lab.lab.segments_netns().unwrap();
        let state = self.lab.lab.router(&RouterName::new("r").unwrap()).unwrap();
        let port = |name| {
            state
                .interface(&ifname(name))
                .unwrap()
                .port
                .clone()
                .unwrap()
        };
        let capture = Capture::start_on(&segments, &["in", "out", "alt"].map(port));
        let seed = 0x5eed_0123_4567_89ab;
        let job = QuickJob {
            pass_on: Some(seed),
            explain,
            ..self.job(case, run, expected)
        };
        let catalogue = Catalogue::new(&job.services);
        let report = self.lab.run(&job);
        let tags = TagSpace::new(Dscp::new(DSCP).unwrap(), seed);
        let seen: Vec<u32> = capture
            .frames()
            .into_iter()
            .filter(|frame| frame[..6] != COPIES.0)
            .filter_map(|frame| crate::capture::probe(&frame[14..], tags))
            .map(|probe| probe.index)
            .collect();
        let verdict = |index| {
            if seen.contains(index) {
                Verdict::Yes
            } else {
                Verdict::No
            }
        };
        let verdicts = catalogue.in_order_asked().iter().map(verdict).collect();
        (report, verdicts)
    }
}

fn xtables(loader: Loader, family: Family, what: &str) -> String {
    let family = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let variant = match loader {
        Loader::IptablesLegacy => "legacy",
        _ => "nft",
    };
    format!("{family}-{variant}-{what}")
}
