//! How probes left, as the taps of every back end note it.

use std::net::IpAddr;

use tsim::{
    firewall::{Backend, iptables::Variant, taps::Departed},
    netlink::object::Family,
};

use super::bed::{Job, Row, plan};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The rules for one family: DNAT of 80 to 8080, a DSCP, a TTL and a mark on the way through.
const CHANGING: &str = "*nat\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination :8080\nCOMMIT\n\
                        *mangle\n-A FORWARD -j TOS --set-tos 0x28\n\
                        -A PREROUTING -j MARK --set-mark 0x70\nCOMMIT\n";

fn noting<'a>(row: &'a Row, run_id: &str, family: Family) -> Job<'a> {
    let mut job = row.job(run_id, family);
    job.taps.note_ways = true;
    job
}

fn left(job: &Job<'_>, backend: Backend) -> Vec<Result<Departed, String>> {
    let reading = job.measure(backend);
    let ways = reading.ways.unwrap();
    let one = |index| ways.get(index).unwrap().copied().map_err(str::to_owned);
    job.catalogue.all().into_iter().map(one).collect()
}

#[test]
fn every_back_end_notes_what_left_and_where_to() {
    for (family, backend) in FAMILIES
        .into_iter()
        .flat_map(|f| Backend::ALL.map(|b| (f, b)))
    {
        let row = Row::new();
        row.load(Variant::Nft, family, CHANGING);
        let job = noting(&row, "left", family);
        let link = row.tool("ip", &["-o", "link", "show", "out"], "");
        let out = link.split(':').next();
        for (probe, left) in job.probes().iter().zip(left(&job, backend)) {
            let left = left.unwrap();
            let port = match probe.headers.destination_port {
                80 => 8080,
                other => other,
            };
            assert_eq!(
                (left.source, left.destination),
                (probe.headers.source, probe.headers.destination)
            );
            assert_eq!(
                (left.source_port, left.destination_port),
                (probe.headers.source_port, port),
                "{backend} {family:?}"
            );
            assert_eq!((left.tos, left.ttl, left.mark), (0x28, 63, 0x70));
            assert_eq!(Some(&*left.oif.to_string()), out);
            // Where it goes is not in a copy of the packet.
            let next_hop = (backend == Backend::Nft).then_some(plan(family).destination);
            assert_eq!(left.next_hop, next_hop);
        }
    }
}

#[test]
fn source_nat_is_noted_by_nft_and_named_by_iptables() {
    let family = Family::V4;
    for backend in Backend::ALL {
        let row = Row::new();
        let variant = backend.variant().unwrap_or(Variant::Nft);
        row.load(
            variant,
            family,
            "*nat\n-A POSTROUTING -p udp -j SNAT --to-source 10.9.0.77\n\
             -A POSTROUTING -p tcp --dport 443 -j MASQUERADE\nCOMMIT\n",
        );
        let job = noting(&row, "snat", family);
        let masked: [IpAddr; 2] = ["10.9.0.77", "10.9.0.1"].map(|a| a.parse().unwrap());
        for (probe, left) in job.probes().iter().zip(left(&job, backend)) {
            let rule = match (probe.headers.protocol, probe.headers.destination_port) {
                (tsim::model::Protocol::Udp, _) => 1,
                (_, 443) => 2,
                _ => 0,
            };
            match (backend, rule) {
                (_, 0) => assert_eq!(left.unwrap().source, probe.headers.source),
                (Backend::Nft, rule) => assert_eq!(left.unwrap().source, masked[rule - 1]),
                (_, rule) => {
                    let why = left.unwrap_err();
                    let named = format!("rule {rule} of chain POSTROUTING (table nat)");
                    assert!(why.starts_with(&named), "{why}");
                }
            }
        }
    }
}

#[test]
fn nft_lists_the_sets_while_they_are_filled() {
    for family in FAMILIES {
        let row = Row::new();
        let job = noting(&row, "listed", family);
        let taps = job.install(Backend::Nft);
        job.send();
        let listed = row.tool("nft", &["list", "ruleset"], "");
        taps.remove().1.unwrap();
        let (destination, elements) = (plan(family).destination, listed.matches("elements"));
        assert!(listed.contains(&destination.to_string()), "{listed}");
        // Headers and ways of four services, and nothing at the end of INPUT.
        assert_eq!(elements.count(), 2, "{listed}");
    }
}
