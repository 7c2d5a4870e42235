//! The detailed job beyond TCP and UDP: who answers, what stops requests and answers of protocols
//! without ports, and that they leave nothing behind.

use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use tsim::run::detailed::result::ServiceStatus;

use crate::{
    detailed::connections,
    detailed_chain::{ask, lab, router, said, service},
};

/// Two routers; the first hides the client's address, the second filters.
const FILTER: &str = "\
table inet fw {
  chain forward {
    type filter hook forward priority 0; policy drop;
    icmpv6 type echo-reply drop
    meta l4proto 89 ct state established drop
    icmp type { echo-request, echo-reply, timestamp-request, timestamp-reply } accept
    icmp type { address-mask-request, address-mask-reply } accept
    icmpv6 type echo-request accept
    meta l4proto { 50, 89 } accept
  }
}
";
const MASQUERADE: &str = "\
table ip nat {
  chain post {
    type nat hook postrouting priority srcnat;
    oifname \"wan\" masquerade
  }
}
";

#[test]
fn every_protocol_is_answered_or_stopped_in_its_own_way() {
    let (lab, _dir) = lab(&[
        router(
            "gw",
            &[
                ("lan", &["10.1.0.1/24", "2001:db8:1::1/64"]),
                ("wan", &["10.2.0.1/24", "2001:db8:2::1/64"]),
            ],
            &[
                "10.3.0.0/24 via 10.2.0.2 dev wan",
                "2001:db8:3::/64 via 2001:db8:2::2 dev wan",
            ],
            MASQUERADE,
        ),
        router(
            "fw",
            &[
                ("wan", &["10.2.0.2/24", "2001:db8:2::2/64"]),
                ("srv", &["10.3.0.1/24", "2001:db8:3::1/64"]),
            ],
            &["2001:db8:1::/64 via 2001:db8:2::1 dev wan"],
            FILTER,
        ),
    ]);
    let asked = "ping,timestamp/icmp,address-mask/icmp,esp,gre,ip/89,9/sctp,9/udp";
    let report = ask(&lab, "10.1.0.50", "10.3.0.60", asked);
    let protocols = ["ping", "timestamp/icmp", "address-mask/icmp", "esp"];
    for name in protocols {
        assert_eq!(said(&report, name), "YES", "{name}");
        let end = &service(&report, name).end;
        let sources = end.way.iter().map(|leg| leg.headers.source.to_string());
        assert_eq!(sources.collect::<Vec<_>>(), ["10.2.0.1", "10.2.0.1"]);
        assert_eq!(end.answer.len(), 2, "{name}: {:?}", end.answer);
    }
    let stopped = "NO fw: no answer: dropped by the policy of chain forward";
    assert!(said(&report, "gre").starts_with(stopped), "{report:?}");
    assert!(said(&report, "9/udp").starts_with(stopped));
    let partial = said(&report, "ip/89");
    assert!(
        partial.starts_with("NO fw: the request arrived; the answer was stopped by rule 2 of"),
        "{partial}"
    );
    let sctp = said(&report, "9/sctp");
    if socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)).is_ok() {
        assert!(sctp.starts_with(stopped), "{sctp}");
    } else {
        assert!(
            sctp.starts_with("UNKNOWN: this kernel has no SCTP"),
            "{sctp}"
        );
        assert_eq!(
            service(&report, "9/sctp").end.status,
            ServiceStatus::Unknown
        );
    }
    let report = ask(&lab, "2001:db8:1::50", "2001:db8:3::60", "ping,esp");
    assert_eq!(said(&report, "esp"), "YES");
    let partial = said(&report, "ping");
    assert!(
        partial.starts_with("NO fw: the request arrived; the answer was stopped by rule 1 of"),
        "{partial}"
    );
    // The router itself answers for its own address, and where its INPUT chains let it.
    let report = ask(&lab, "10.1.0.50", "10.3.0.1", "ping,esp");
    assert_eq!(said(&report, "ping"), "YES");
    assert_eq!(said(&report, "esp"), "YES");
    lab.nft(
        "fw",
        "add chain inet fw input { type filter hook input priority 0; }; \
         add rule inet fw input icmp type echo-request drop",
    );
    let report = ask(&lab, "10.1.0.50", "10.3.0.1", "ping,esp");
    let stopped = said(&report, "ping");
    assert!(
        stopped.starts_with("NO fw: no answer: dropped by rule 1 of chain input"),
        "{stopped}"
    );
    assert_eq!(said(&report, "esp"), "YES");
    for name in ["gw", "fw"] {
        assert_eq!(connections(&lab, name).trim(), "0", "{name}");
    }
}
