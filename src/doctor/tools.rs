//! The programs that are run: where they are, their versions, and what they say about the kernel.

use super::{Area, Check, check};
use crate::{
    firewall::Support,
    model::WithCauses,
    netns::tool::{ToolError, Tools},
};

/// Every tool that some part runs.
const NAMES: [&str; 8] = [
    "iptables-restore",
    "iptables-save",
    "ip6tables-restore",
    "ip6tables-save",
    "iptables-legacy-restore",
    "iptables-legacy-save",
    "nft",
    "ipset",
];

/// Parts of messages by which iptables, nft and ipset say that the kernel refused a feature.
/// Anything else that they say says nothing about the kernel.
const MEANS_UNSUPPORTED: [&str; 7] = [
    "No such file or directory",
    "Operation not supported",
    "Protocol not supported",
    "not supported by kernel",
    "set type not supported",
    "Table does not exist",
    "Cannot open session to kernel",
];

pub(super) fn checks(tools: &Tools) -> Vec<Check> {
    let one = |name| match tools.find(name) {
        Err(error) => {
            let absent = Support::No(error.to_string());
            check(Area::Tools, name, absent, String::new())
        }
        Ok(path) => match version(tools, name) {
            Ok(version) => {
                let found = format!("{} {version}", path.display());
                check(Area::Tools, name, Support::Yes, found)
            }
            Err(error) => {
                let broken = Support::Unknown(WithCauses(&error).to_string());
                check(Area::Tools, name, broken, String::new())
            }
        },
    };
    NAMES.map(one).into()
}

/// What follows the name on the first line, e.g. `v1.8.9 (nf_tables)`.
fn version(tools: &Tools, name: &str) -> Result<String, ToolError> {
    let printed = tools.run(name, &["--version"], &[])?;
    let text = String::from_utf8_lossy(&printed.stdout);
    let line = text.lines().next().unwrap_or_default();
    Ok(line
        .split_once(' ')
        .map_or(line, |(_, rest)| rest)
        .to_owned())
}

/// Has a tool ask the kernel for a feature, in the calling thread's namespace. Only the kernel's
/// refusal means that it is absent.
pub(super) fn ask(tools: &Tools, name: &str, args: &[&str], input: &str) -> Support {
    match tools.run(name, args, input.as_bytes()) {
        Ok(_) => Support::Yes,
        Err(ToolError::Failed { stderr, .. }) => judge(&stderr),
        Err(error) => Support::Unknown(WithCauses(&error).to_string()),
    }
}

fn judge(message: &str) -> Support {
    let words: Vec<&str> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let words = words.join("; ");
    if MEANS_UNSUPPORTED.iter().any(|text| words.contains(text)) {
        Support::No(words)
    } else {
        Support::Unknown(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_refusal_means_no() {
        let no = "iptables-restore v1.8.9 (nf_tables): \nline 2: RULE_APPEND failed \
                  (No such file or directory): rule in chain X";
        assert!(matches!(judge(no), Support::No(_)));
        for unclear in [
            "nft: syntax error, unexpected egress",
            "iptables-restore: Permission denied (you must be root)",
            "",
        ] {
            assert!(matches!(judge(unclear), Support::Unknown(_)), "{unclear}");
        }
    }

    #[test]
    fn a_tool_that_is_not_there_says_nothing_about_the_kernel() {
        let answer = ask(&Tools::new([]), "nft", &["list", "ruleset"], "");
        assert!(matches!(answer, Support::Unknown(why) if why.contains("no nft")));
    }
}
