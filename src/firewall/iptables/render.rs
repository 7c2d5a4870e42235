//! Renders taps as payloads for `iptables-restore --noflush`.
//!
//! ```text
//! *mangle
//! -N TSIM_RUNID_o
//! -A TSIM_RUNID_o -j NFLOG --nflog-group 16500 --nflog-prefix o    # counts and notes
//! -A TSIM_RUNID_o -j DROP
//! -I POSTROUTING 1 -p tcp -m u32 --u32 … -j TSIM_RUNID_o           # probes, and nothing else
//! -I POSTROUTING 1 -p udp -m u32 --u32 … -j TSIM_RUNID_o
//! COMMIT
//! ```
//!
//! The number of rules does not depend on the number of services: which probe it was is told by
//! the packet itself, which `NFLOG` passes on. One rule per service, with its 2 KiB of u32
//! program, would be 290 MB for all ports of both protocols.

use std::{fmt::Write, ops::Range};

use super::{
    identity::{Identity, MadeByTaps, Mark, chain_name},
    place::{Spot, TapPlace},
    save::{IptablesSave, RuleSave},
};
use crate::{
    firewall::{Taps, layout},
    model::Protocol,
    netlink::object::Family,
};

/// How probes are recognised. Both ways are exact; which one is there depends on the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matcher {
    /// `-m u32`.
    U32,
    /// `-m bpf`.
    Bpf,
}

impl Matcher {
    /// The name of the match.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::U32 => "u32",
            Self::Bpf => "bpf",
        }
    }
}

/// What the chain of one tap does with a probe, besides counting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tap {
    /// The tap's letter: in its chain's name, in comments, and as prefix of notes.
    pub(super) letter: char,
    pub(super) table: &'static str,
    pub(super) base: &'static str,
    at_end: bool,
    discard: bool,
}

/// Letters of the taps.
pub(super) mod letter {
    /// A probe came in.
    pub(in super::super) const ARRIVAL: char = 'i';
    /// It came to the last table of POSTROUTING.
    pub(in super::super) const OUT_HEAD: char = 'h';
    /// It went out.
    pub(in super::super) const OUT: char = 'o';
    /// It came to the last table of INPUT.
    pub(in super::super) const LOCAL_HEAD: char = 'k';
    /// It reached the end of INPUT.
    pub(in super::super) const LOCAL: char = 'l';
}

/// Everything that one job puts into one router.
#[derive(Debug, Clone)]
pub(super) struct TapPlan {
    pub(super) taps: Taps,
    pub(super) identity: Identity,
    pub(super) matcher: Matcher,
    /// NFLOG group that the job listens to.
    pub(super) group: u16,
    pub(super) points: Vec<Tap>,
    pub(super) made: Vec<&'static MadeByTaps>,
}

/// The taps for these places.
pub(super) fn points(
    taps: &Taps,
    arrival: &TapPlace,
    out: &TapPlace,
    local: &TapPlace,
) -> Vec<Tap> {
    let mut points = vec![Tap {
        letter: letter::ARRIVAL,
        table: arrival.table,
        base: "PREROUTING",
        at_end: false,
        discard: false,
    }];
    let ends = [
        (out, "POSTROUTING", letter::OUT_HEAD, letter::OUT),
        (local, "INPUT", letter::LOCAL_HEAD, letter::LOCAL),
    ];
    for (place, base, head, end) in ends {
        let tap = |letter, at_end, discard| Tap {
            letter,
            table: place.table,
            base,
            at_end,
            discard,
        };
        let discard = !taps.pass_on;
        match place.spot {
            Spot::Head => points.push(tap(end, false, discard)),
            Spot::End => points.push(tap(end, true, discard)),
            Spot::Both { .. } => points.extend([tap(head, false, false), tap(end, true, discard)]),
            Spot::Undecided { .. } => points.push(tap(head, false, discard)),
        }
    }
    points
}

impl TapPlan {
    /// The payload that installs everything.
    pub(super) fn install(&self) -> String {
        let tables = self.points.iter().map(|tap| tap.table);
        payload(tables, |table| {
            let mut lines = String::new();
            for tap in self.points.iter().filter(|tap| tap.table == table) {
                self.tap(&mut lines, tap);
            }
            lines
        })
    }

    /// The chain of one tap and the rules that lead there. Writing to a String cannot fail.
    fn tap(&self, lines: &mut String, tap: &Tap) {
        let chain = chain_name(&self.taps.run_id, tap.letter);
        let comment = self.comment(tap.letter);
        // `-N` refuses a chain that exists; declaring it with a colon would empty it instead.
        let _ = writeln!(lines, "-N {chain}");
        let (group, prefix) = (self.group, tap.letter);
        let _ = writeln!(
            lines,
            "-A {chain} {comment} -j NFLOG --nflog-group {group} --nflog-prefix {prefix}"
        );
        if tap.discard {
            let _ = writeln!(lines, "-A {chain} {comment} -j DROP");
        }
        for (protocol, run) in self.taps.runs.iter() {
            let probe = self.probe(protocol, &run);
            let at = if tap.at_end {
                format!("-A {}", tap.base)
            } else {
                format!("-I {} 1", tap.base)
            };
            let _ = writeln!(lines, "{at} {probe} {comment} -j {chain}");
        }
    }

    pub(super) fn comment(&self, point: char) -> String {
        let mark = Mark {
            identity: self.identity.clone(),
            point,
            made: self.made.clone(),
        };
        format!("-m comment --comment \"{}\"", mark.comment())
    }

    /// The matches that only this job's probes of one protocol meet.
    fn probe(&self, protocol: Protocol, run: &Range<u32>) -> String {
        let tags = self.taps.tags;
        let (first, last) = (tags.tag(run.start), tags.tag(run.end.saturating_sub(1)));
        let name = match protocol {
            Protocol::Tcp | Protocol::Udp => protocol.to_string(),
            _ => protocol.number().to_string(),
        };
        let offset = layout::tag_offset(protocol);
        let test = match self.matcher {
            Matcher::U32 => self.u32(offset, first, last),
            Matcher::Bpf => self.bpf(offset, first, last),
        };
        format!("-p {name} {test}")
    }

    /// A u32 program, iptables-extensions(8). Our probes have no IPv6 extension headers.
    fn u32(&self, offset: u32, first: u32, last: u32) -> String {
        let tags = self.taps.tags;
        let tests = match self.taps.family {
            Family::V4 => format!("4>>16={:#x}&&0>>22&0x3c@{offset}", tags.ipv4_id()),
            Family::V6 => format!(
                "0&0xfffff={:#x}&&{}",
                tags.flow_label(),
                IPV6_HEADER + offset
            ),
        };
        format!("-m u32 --u32 \"{tests}={first:#x}:{last:#x}\"")
    }

    /// The same as a classic BPF program (linux/filter.h): code, jump if true, if false, operand.
    fn bpf(&self, offset: u32, first: u32, last: u32) -> String {
        let tags = self.taps.tags;
        let head = match self.taps.family {
            // ldh [4]; jne id, no; ldx 4*([0]&0xf); ld [x + offset]
            Family::V4 => format!(
                "40 0 0 4,21 0 5 {},177 0 0 0,64 0 0 {offset}",
                tags.ipv4_id()
            ),
            // ld [0]; and 0xfffff; jne label, no; ld [40 + offset]
            Family::V6 => format!(
                "32 0 0 0,84 0 0 1048575,21 0 4 {},32 0 0 {}",
                tags.flow_label(),
                IPV6_HEADER + offset
            ),
        };
        // jlt first, no; jgt last, no; ret 1; no: ret 0
        format!("-m bpf --bytecode \"8,{head},53 0 2 {first},37 1 0 {last},6 0 0 1,6 0 0 0\"")
    }
}

/// Length of the IPv6 header, RFC 8200.
const IPV6_HEADER: u32 = 40;

/// The payload that removes what `save` shows of the jobs that `doomed` names: first the rules
/// that lead to their chains, then the chains. None when there is nothing.
///
/// Every rule is deleted as it is printed, so it need not be this program's version that made it.
pub(super) fn removal(save: &IptablesSave, doomed: impl Fn(&Mark) -> bool) -> Option<String> {
    let text = payload(save.tables.keys().map(String::as_str), |name| {
        let ours = |rule: &RuleSave| Mark::parse(&rule.comment()?).filter(&doomed);
        let mut lines = String::new();
        let mut chains = Vec::new();
        for rule in save.rules(name) {
            let Some(mark) = ours(rule) else { continue };
            let _ = writeln!(lines, "-D {} {}", rule.chain, rule.spec);
            chains.push(chain_name(&mark.identity.run_id, mark.point));
        }
        chains.sort();
        chains.dedup();
        // A chain in which somebody else has put rules stays.
        chains.retain(|chain| save.has_chain(name, chain, |rule| ours(rule).is_some()));
        for chain in chains {
            let _ = writeln!(lines, "-X {chain}");
        }
        lines
    });
    (!text.is_empty()).then_some(text)
}

/// One section per table that has lines.
fn payload<'a>(tables: impl Iterator<Item = &'a str>, lines: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    let mut done = Vec::new();
    for table in tables {
        if done.contains(&table) {
            continue;
        }
        done.push(table);
        let lines = lines(table);
        if !lines.is_empty() {
            let _ = write!(text, "*{table}\n{lines}COMMIT\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        firewall::{
            Runs, TagSpace,
            iptables::identity::{OwnerMark, PARTS},
        },
        model::{Dscp, RunId},
    };

    fn plan(family: Family, out: Spot) -> TapPlan {
        let run_id = RunId::new("r1").unwrap();
        let dscp = Dscp::new(33).unwrap();
        let taps = Taps::new(
            run_id.clone(),
            family,
            TagSpace::new(dscp, 0x1234_5678_90ab_cdef),
            (10, Runs::new(&[(Protocol::Tcp, 4), (Protocol::Udp, 6)])),
        );
        let at = |table, spot| TapPlace { table, spot };
        let places = [
            at("raw", Spot::Head),
            at("mangle", out),
            at("security", Spot::Head),
        ];
        let points = points(&taps, &places[0], &places[1], &places[2]);
        let owner = OwnerMark {
            pid: 7,
            ..OwnerMark::default()
        };
        TapPlan {
            taps,
            identity: Identity {
                run_id,
                dscp,
                owner,
            },
            matcher: Matcher::U32,
            group: 16_500,
            points,
            made: vec![&PARTS[2]],
        }
    }

    #[test]
    fn an_ipv4_payload_is_as_it_was_reviewed() {
        let text = plan(Family::V4, Spot::End).install();
        let golden = r#"*raw
-N TSIM_r1_i
-A TSIM_r1_i -m comment --comment "TSIM_KSMS=r1:i:dscp=33:pid=7:made=m" -j NFLOG --nflog-group 16500 --nflog-prefix i
-I PREROUTING 1 -p tcp -m u32 --u32 "4>>16=0x5679&&0>>22&0x3c@4=0x87de0000:0x87de0003" -m comment --comment "TSIM_KSMS=r1:i:dscp=33:pid=7:made=m" -j TSIM_r1_i
-I PREROUTING 1 -p udp -m u32 --u32 "4>>16=0x5679&&0>>22&0x3c@8=0x87de0004:0x87de0009" -m comment --comment "TSIM_KSMS=r1:i:dscp=33:pid=7:made=m" -j TSIM_r1_i
COMMIT
*mangle
-N TSIM_r1_o
-A TSIM_r1_o -m comment --comment "TSIM_KSMS=r1:o:dscp=33:pid=7:made=m" -j NFLOG --nflog-group 16500 --nflog-prefix o
-A TSIM_r1_o -m comment --comment "TSIM_KSMS=r1:o:dscp=33:pid=7:made=m" -j DROP
-A POSTROUTING -p tcp -m u32 --u32 "4>>16=0x5679&&0>>22&0x3c@4=0x87de0000:0x87de0003" -m comment --comment "TSIM_KSMS=r1:o:dscp=33:pid=7:made=m" -j TSIM_r1_o
-A POSTROUTING -p udp -m u32 --u32 "4>>16=0x5679&&0>>22&0x3c@8=0x87de0004:0x87de0009" -m comment --comment "TSIM_KSMS=r1:o:dscp=33:pid=7:made=m" -j TSIM_r1_o
COMMIT
*security
-N TSIM_r1_l
-A TSIM_r1_l -m comment --comment "TSIM_KSMS=r1:l:dscp=33:pid=7:made=m" -j NFLOG --nflog-group 16500 --nflog-prefix l
-A TSIM_r1_l -m comment --comment "TSIM_KSMS=r1:l:dscp=33:pid=7:made=m" -j DROP
-I INPUT 1 -p tcp -m u32 --u32 "4>>16=0x5679&&0>>22&0x3c@4=0x87de0000:0x87de0003" -m comment --comment "TSIM_KSMS=r1:l:dscp=33:pid=7:made=m" -j TSIM_r1_l
-I INPUT 1 -p udp -m u32 --u32 "4>>16=0x5679&&0>>22&0x3c@8=0x87de0004:0x87de0009" -m comment --comment "TSIM_KSMS=r1:l:dscp=33:pid=7:made=m" -j TSIM_r1_l
COMMIT
"#;
        assert!(text == golden, "{text}");
    }

    #[test]
    fn ipv6_probes_are_known_by_flow_label_behind_a_fixed_header() {
        let plan = plan(Family::V6, Spot::Head);
        assert_eq!(
            plan.probe(Protocol::Tcp, &(0..4)),
            r#"-p tcp -m u32 --u32 "0&0xfffff=0x45679&&44=0x87de0000:0x87de0003""#
        );
        assert_eq!(
            plan.probe(Protocol::Udp, &(4..10)),
            r#"-p udp -m u32 --u32 "0&0xfffff=0x45679&&48=0x87de0004:0x87de0009""#
        );
    }

    #[test]
    fn without_u32_the_same_is_said_in_bpf() {
        let plan = TapPlan {
            matcher: Matcher::Bpf,
            ..plan(Family::V4, Spot::Head)
        };
        assert_eq!(
            plan.probe(Protocol::Tcp, &(0..4)),
            "-p tcp -m bpf --bytecode \"8,40 0 0 4,21 0 5 22137,177 0 0 0,64 0 0 4,\
             53 0 2 2279473152,37 1 0 2279473155,6 0 0 1,6 0 0 0\""
        );
    }

    #[test]
    fn a_spot_at_both_ends_notes_at_both_and_discards_once() {
        let reason = String::new();
        let plan = plan(Family::V4, Spot::Both { reason });
        let out = plan.points.iter().filter(|tap| tap.base == "POSTROUTING");
        let told: Vec<_> = out
            .map(|tap| (tap.letter, tap.at_end, tap.discard))
            .collect();
        assert_eq!(told, [('h', false, false), ('o', true, true)]);
    }

    #[test]
    fn removal_takes_the_marked_rules_and_leaves_all_others() {
        let ours = r#"-m comment --comment "TSIM_KSMS=r1:o:dscp=33:pid=7""#;
        let other = r#"-m comment --comment "TSIM_KSMS=r2:o:dscp=34:pid=8""#;
        let saved = format!(
            "*mangle\n:TSIM_r1_o - [0:0]\n:TSIM_r2_o - [0:0]\n:TSIM_x - [0:0]\n\
             [3:9] -A POSTROUTING -p tcp {ours} -j TSIM_r1_o\n\
             [3:9] -A POSTROUTING -p tcp {other} -j TSIM_r2_o\n\
             [3:9] -A POSTROUTING -j TSIM_x\n\
             [3:9] -A TSIM_r1_o {ours} -j DROP\n\
             [3:9] -A TSIM_r2_o {other} -j DROP\nCOMMIT\n"
        );
        let save = IptablesSave::parse(&saved);
        let r1 = |mark: &Mark| mark.identity.run_id.as_str() == "r1";
        assert_eq!(
            removal(&save, r1).unwrap(),
            format!(
                "*mangle\n-D POSTROUTING -p tcp {ours} -j TSIM_r1_o\n\
                 -D TSIM_r1_o {ours} -j DROP\n-X TSIM_r1_o\nCOMMIT\n"
            )
        );
        assert_eq!(removal(&save, |_| false), None);
        // A rule that somebody else put into our chain keeps the chain.
        let save = IptablesSave::parse(&format!("{saved}*mangle\n-A TSIM_r1_o -j ACCEPT\n"));
        assert!(!removal(&save, r1).unwrap().contains("-X"));
    }
}
