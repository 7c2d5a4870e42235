//! Whether the kernel and the machine have what a back end needs, with three answers.

use std::path::Path;

use super::{
    IptablesError,
    command::{Iptables, Variant},
    identity::chain_name,
    render::{Matcher, TapPlan},
};
use crate::{
    firewall::{
        Backend, Support, TapSite,
        nft::{NftSocket, inventory},
    },
    model::WithCauses,
    netlink::object::Family,
    netns::{tool::ToolError, visit},
};

/// Letter of the chain of a trial.
const TRIAL: char = 't';

/// Looks whether `backend` can be used for `family` in a router. What
/// [`choose`](crate::firewall::choose) takes as its probe. A socket in the router that nf_tables answered
/// is `kept`.
#[must_use]
pub fn probe(
    backend: Backend,
    family: Family,
    site: TapSite<'_>,
    kept: &mut Option<NftSocket>,
) -> Support {
    let mut nf_tables = || match visit(&[site.netns], |_| inventory::asked_here()) {
        Ok(mut asked) => match asked.pop() {
            Some((support, socket)) => {
                *kept = socket;
                support
            }
            None => Support::Unknown("nobody was asked".to_owned()),
        },
        Err(error) => Support::Unknown(WithCauses(&error).to_string()),
    };
    match backend {
        Backend::Nft => nf_tables(),
        Backend::IptablesNft => match nf_tables() {
            Support::Yes => installed(&Iptables::new(Variant::Nft, family, site)),
            other => other,
        },
        Backend::IptablesLegacy => legacy(&Iptables::new(Variant::Legacy, family, site)),
    }
}

fn installed(iptables: &Iptables) -> Support {
    for tool in ["restore", "save"] {
        if let Err(error) = iptables.find(tool) {
            return Support::No(error.to_string());
        }
    }
    Support::Yes
}

fn legacy(iptables: &Iptables) -> Support {
    let support = installed(iptables);
    if !matches!(support, Support::Yes) {
        return support;
    }
    let names = match iptables.family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    let names = Path::new("/proc/thread-self/net").join(names);
    match iptables.inside(|| names.try_exists()) {
        Ok(Ok(true)) => return Support::Yes,
        Ok(Ok(false)) => {}
        Ok(Err(error)) => return Support::Unknown(WithCauses(&error).to_string()),
        Err(error) => return Support::Unknown(WithCauses(&error).to_string()),
    }
    // Its module may be there and not loaded; asking for a table loads it.
    match iptables.save(Some("mangle")) {
        Ok(_) => Support::Yes,
        Err(IptablesError::Tool(ToolError::Failed { stderr, .. }))
            if stderr.contains("Table does not exist") =>
        {
            Support::No(stderr.trim().to_owned())
        }
        Err(error) => Support::Unknown(WithCauses(&error).to_string()),
    }
}

/// Looks whether the kernel and the tool have the plan's matcher: by making a chain that nothing
/// leads to, once with a rule that uses it and once without.
pub(super) fn matcher(iptables: &Iptables, plan: &TapPlan) -> Support {
    let test = match plan.matcher {
        Matcher::U32 => "-m u32 --u32 \"0=0\"",
        Matcher::Bpf => "-m bpf --bytecode \"1,6 0 0 0\"",
    };
    if let Err(error) = trial(iptables, plan, "") {
        return Support::Unknown(WithCauses(&error).to_string());
    }
    match trial(iptables, plan, test) {
        Ok(()) => Support::Yes,
        Err(IptablesError::Refused { stderr, .. }) => Support::No(stderr.trim().to_owned()),
        Err(error) => Support::Unknown(WithCauses(&error).to_string()),
    }
}

/// Two payloads, because the legacy variant shows the kernel only what is left in the end.
fn trial(iptables: &Iptables, plan: &TapPlan, test: &str) -> Result<(), IptablesError> {
    let chain = chain_name(&plan.taps.run_id, TRIAL);
    let comment = plan.comment(TRIAL);
    iptables.restore(&format!(
        "*mangle\n-N {chain}\n-A {chain} {test} {comment}\nCOMMIT\n"
    ))?;
    iptables.restore(&format!("*mangle\n-F {chain}\n-X {chain}\nCOMMIT\n"))
}
