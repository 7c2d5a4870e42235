//! Rules as the user's own tool prints them.
//!
//! The kernel knows rules by handle. Their order comes from the kernel, too; their text from the
//! tool that the table belongs to: `iptables-nft-save` and `ip6tables-nft-save` for tables that
//! these made, `nft` for all others. A book runs each tool at most once, `nft` once per table, and
//! only when a rule of its kind is asked for, however many rules that are. With a [`Shelf`] it runs
//! none where an earlier job did and the kernel still holds the same.

pub(super) mod kept;
mod nft;
mod xtables;

use std::{collections::HashMap, fmt, sync::Arc};

pub use self::kept::Shelf;
pub(crate) use self::kept::sum_held;
use self::{kept::KeptRules, nft::RuleListing, xtables::RulesByChain};
use crate::{
    firewall::{
        RulePlace, TableFamily,
        nft::{
            NftError, NftSocket,
            list::{RuleOrder, rule_order},
        },
        rule::{OpenPorts, Rewritten, Rule, rule_of},
    },
    model::printable,
    netns::{
        NetnsError, NetnsFd,
        tool::{ToolError, Tools},
    },
};

/// Tables that iptables makes, iptables(8).
const XTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// Where a book gets its content from: one namespace.
#[derive(Debug)]
pub struct RuleSource<'a> {
    /// The namespace.
    pub netns: &'a NetnsFd,
    /// The tools that print rulesets.
    pub tools: &'a Tools,
    /// A socket of that namespace.
    pub socket: &'a mut NftSocket,
}

/// A rule with what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleText {
    /// Where it is.
    pub place: RulePlace,
    /// Its position in the chain, counted from 1; none when it is gone.
    pub position: Option<usize>,
    /// The rule as its tool prints it; none when the tool did not print it.
    pub text: Option<String>,
    /// Whether the table is one of iptables.
    pub xtables: bool,
}

impl RuleText {
    /// What the rule asks and does. One without text may do anything.
    #[must_use]
    pub fn parsed(&self) -> Rule {
        rule_of(self.text.as_deref())
    }
}

impl fmt::Display for RuleText {
    /// `rule 12 of chain FORWARD (table filter): -A FORWARD …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(position) => write!(f, "rule {position}")?,
            None => write!(f, "rule with handle {}", self.place.handle)?,
        }
        f.write_str(" of ")?;
        write_chain(f, &self.place, self.xtables)?;
        match &self.text {
            Some(text) => write!(f, ": {}", printable(text)),
            None => Ok(()),
        }
    }
}

/// A chain with its rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChain {
    /// Where it is; the handle is 0.
    pub place: RulePlace,
    /// Its rules.
    pub rules: Vec<RuleText>,
    /// What each of them asks and does.
    pub parsed: Arc<[Rule]>,
    /// Whether the table is one of iptables.
    pub xtables: bool,
    by_handle: HashMap<u64, usize>,
}

impl TextChain {
    fn new(
        place: &RulePlace,
        handles: &[u64],
        texts: Vec<Option<String>>,
        xtables: bool,
        is_over: impl Fn(&str) -> Option<bool>,
        (open_ports, any_sender, rewritten): (OpenPorts, bool, &Rewritten),
    ) -> Self {
        let rule = |(at, (&handle, text)): (usize, (&u64, Option<String>))| RuleText {
            place: RulePlace {
                handle,
                ..place.clone()
            },
            position: Some(at + 1),
            text,
            xtables,
        };
        let rules: Vec<RuleText> = handles.iter().zip(texts).enumerate().map(rule).collect();
        Self {
            place: place.clone(),
            parsed: rules
                .iter()
                .map(|rule| {
                    let mut parsed = rule.parsed();
                    parsed.know_objects(&is_over);
                    parsed.leave_source_port_open(open_ports);
                    parsed.leave_rewritten_open(rewritten);
                    if any_sender {
                        parsed.leave_sender_open();
                    }
                    parsed
                })
                .collect(),
            rules,
            xtables,
            by_handle: handles.iter().copied().zip(0..).collect(),
        }
    }

    /// The index in `rules` of the rule with this handle.
    #[must_use]
    pub fn index(&self, handle: u64) -> Option<usize> {
        self.by_handle.get(&handle).copied()
    }

    /// The rule with this handle; without position and text when it is gone by now.
    #[must_use]
    pub fn rule(&self, handle: u64) -> RuleText {
        match self.index(handle) {
            Some(index) => self.rules[index].clone(),
            None => RuleText {
                place: RulePlace {
                    handle,
                    ..self.place.clone()
                },
                position: None,
                text: None,
                xtables: self.xtables,
            },
        }
    }
}

impl fmt::Display for TextChain {
    /// `chain FORWARD (table filter)`; the family is said unless iptables' own words imply it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_chain(f, &self.place, self.xtables)
    }
}

fn write_chain(f: &mut fmt::Formatter<'_>, place: &RulePlace, xtables: bool) -> fmt::Result {
    let RulePlace {
        family,
        table,
        chain,
        ..
    } = place;
    let (table, chain) = (printable(table), printable(chain));
    if xtables && *family == TableFamily::IP {
        write!(f, "chain {chain} (table {table})")
    } else {
        write!(f, "chain {chain} (table {family} {table})")
    }
}

/// The rules of one namespace at one generation of its ruleset.
#[derive(Debug, Default)]
pub struct RuleBook {
    /// Handles of tables that were read, of chains that were not.
    orders: HashMap<(TableFamily, String), RuleOrder>,
    chains: HashMap<RulePlace, Arc<TextChain>>,
    native: HashMap<(TableFamily, String), RuleListing>,
    saves: HashMap<TableFamily, RulesByChain>,
    failures: Vec<String>,
    shelf: Option<Shelf>,
    kept: Option<KeptRules>,
    open_ports: OpenPorts,
    any_sender: bool,
    rewritten: Rewritten,
}

impl RuleBook {
    /// A book without content; it is read when it is needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A book that takes what is right of what `shelf` has.
    #[must_use]
    pub fn beside(shelf: Option<Shelf>) -> Self {
        Self {
            shelf,
            ..Self::default()
        }
    }

    /// Which source ports packets may have had as well.
    #[must_use]
    pub fn of_open_ports(self, open_ports: OpenPorts) -> Self {
        Self { open_ports, ..self }
    }

    /// The same that it was made for.
    #[must_use]
    pub fn open_ports(&self) -> OpenPorts {
        self.open_ports
    }

    /// Whether any program of the router may be the sender.
    #[must_use]
    pub fn of_any_sender(self, any_sender: bool) -> Self {
        Self { any_sender, ..self }
    }

    /// What other routers may have rewritten of packets.
    #[must_use]
    pub fn of_rewritten(self, rewritten: &Rewritten) -> Self {
        let rewritten = rewritten.clone();
        Self { rewritten, ..self }
    }

    /// Keeps on the shelf what tools have printed since.
    pub fn store(&mut self, source: &mut RuleSource<'_>) {
        if let Some(kept) = &mut self.kept {
            kept.store(source);
        }
    }

    /// Why a tool did not print what was wanted.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// The chain that holds `place`, with all its rules.
    ///
    /// # Errors
    /// [`NftError`] when the order of rules cannot be read. A tool that fails is no error: rules
    /// come without text.
    pub fn chain(
        &mut self,
        source: &mut RuleSource<'_>,
        place: &RulePlace,
    ) -> Result<Arc<TextChain>, NftError> {
        let key = RulePlace {
            handle: 0,
            ..place.clone()
        };
        if let Some(chain) = self.chains.get(&key) {
            return Ok(chain.clone());
        }
        let chain = Arc::new(self.read_chain(source, &key)?);
        self.chains.insert(key, chain.clone());
        Ok(chain)
    }

    fn read_chain(
        &mut self,
        source: &mut RuleSource<'_>,
        place: &RulePlace,
    ) -> Result<TextChain, NftError> {
        let table = (place.family, place.table.clone());
        if !self.orders.contains_key(&table) {
            let order = rule_order(source.socket, place.family, &place.table)?;
            self.orders.insert(table.clone(), order);
        }
        let handles = self.orders.get_mut(&table);
        let handles = handles
            .and_then(|order| order.remove(&place.chain))
            .unwrap_or_default();
        let saved = self.saved(source, place, handles.len());
        let xtables = saved.is_some();
        let of_nft = saved.is_none();
        let texts: Vec<Option<String>> = match saved {
            Some(texts) => texts.iter().cloned().map(Some).collect(),
            None => self.listed(source, place, &handles),
        };
        let listing = self.native.get(&table).filter(|_| of_nft);
        let is_over = |name: &str| listing?.is_over(name);
        let open = (self.open_ports, self.any_sender, &self.rewritten);
        Ok(TextChain::new(
            place, &handles, texts, xtables, is_over, open,
        ))
    }

    /// The chain as iptables prints it, if it is one of iptables and has `count` rules there, too.
    fn saved(
        &mut self,
        source: &mut RuleSource<'_>,
        place: &RulePlace,
        count: usize,
    ) -> Option<&[String]> {
        let tool = match place.family {
            TableFamily::IP => "iptables-nft-save",
            TableFamily::IP6 => "ip6tables-nft-save",
            _ => return None,
        };
        if !XTABLES.contains(&place.table.as_str()) {
            return None;
        }
        if !self.saves.contains_key(&place.family) {
            let text = self.run(source, tool, &[]);
            self.saves.insert(place.family, RulesByChain::parse(&text));
        }
        let save = self.saves.get(&place.family)?;
        let rules = save.chain(&place.table, &place.chain)?;
        (rules.len() == count).then_some(rules)
    }

    fn listed(
        &mut self,
        source: &mut RuleSource<'_>,
        place: &RulePlace,
        handles: &[u64],
    ) -> Vec<Option<String>> {
        let table = (place.family, place.table.clone());
        if !handles.is_empty() && !self.native.contains_key(&table) {
            let listing = RuleListing::parse(&self.list(source, &table));
            self.native.insert(table.clone(), listing);
        }
        let listing = self.native.get(&table);
        let text = |&handle: &u64| {
            let place = RulePlace {
                handle,
                ..place.clone()
            };
            listing?.text(&place).map(str::to_owned)
        };
        handles.iter().map(text).collect()
    }

    /// What `nft` prints of one table. Asked for all, it reads every element of every set, those of
    /// other jobs' taps included; that is done only where it does not take the table's name.
    fn list(
        &mut self,
        source: &mut RuleSource<'_>,
        (family, table): &(TableFamily, String),
    ) -> String {
        let family = family.to_string();
        let one = ["-a", "-s", "-t", "list", "table", &family, table];
        let listed = is_word(table).then(|| self.print(source, "nft", &one));
        match listed {
            Some(Ok(text)) => text,
            Some(Err(_)) | None => self.run(source, "nft", &["-a", "-s", "-t", "list", "ruleset"]),
        }
    }

    /// What `tool` prints inside the namespace; nothing, and a note, when it fails.
    fn run(&mut self, source: &mut RuleSource<'_>, tool: &str, args: &[&str]) -> String {
        self.print(source, tool, args).unwrap_or_else(|failure| {
            self.failures.push(format!("no rule text: {failure}"));
            String::new()
        })
    }

    /// What `tool` prints inside the namespace, or what it printed.
    fn print(
        &mut self,
        source: &mut RuleSource<'_>,
        tool: &str,
        args: &[&str],
    ) -> Result<String, PrintError> {
        if let (None, Some(shelf)) = (&self.kept, self.shelf.clone()) {
            self.kept = Some(KeptRules::open(shelf, source));
        }
        let command = [&[tool], args].concat().join(" ");
        if let Some(text) = self.kept.as_ref().and_then(|kept| kept.text(&command)) {
            return Ok(text.to_owned());
        }
        let text = print(source, tool, args)?;
        if let Some(kept) = &mut self.kept {
            kept.add(command, text.clone());
        }
        Ok(text)
    }
}

/// What `tool` prints inside the namespace.
///
/// # Errors
/// [`PrintError`].
pub fn print(source: &RuleSource<'_>, tool: &str, args: &[&str]) -> Result<String, PrintError> {
    let ran = source.netns.enter(|| source.tools.run(tool, args, &[]));
    let printed = ran.map_err(PrintError::Enter)?.map_err(PrintError::Run)?;
    Ok(String::from_utf8_lossy(&printed.stdout).into_owned())
}

/// Whether the name of a table is one word to `nft`, and neither an option nor a fragment of
/// something else. (The kernel allows any name. Key words it refuses.)
pub(crate) fn is_word(table: &str) -> bool {
    table.starts_with(|c: char| c.is_ascii_alphabetic())
        && table
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// A tool printed nothing of a router.
#[derive(Debug, thiserror::Error)]
pub enum PrintError {
    /// Its namespace could not be entered.
    #[error(transparent)]
    Enter(NetnsError),
    /// The tool failed.
    #[error(transparent)]
    Run(ToolError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_words_are_put_on_a_command_line() {
        for word in ["fw", "filter-1", "a.b_c"] {
            assert!(is_word(word), "{word}");
        }
        for other in ["", "-f", "a b", "a;b", "a\"", "1", "ä", "a{"] {
            assert!(!is_word(other), "{other}");
        }
    }

    #[test]
    fn a_rule_is_named_by_position_chain_and_text() {
        let mut rule = RuleText {
            place: RulePlace {
                family: TableFamily::IP,
                table: "filter".to_owned(),
                chain: "FORWARD".to_owned(),
                handle: 7,
            },
            position: Some(12),
            text: Some("-A FORWARD -p tcp -m tcp --dport 23 -j DROP".to_owned()),
            xtables: true,
        };
        assert_eq!(
            rule.to_string(),
            "rule 12 of chain FORWARD (table filter): -A FORWARD -p tcp -m tcp --dport 23 -j DROP"
        );
        rule.xtables = false;
        rule.position = None;
        rule.text = None;
        assert_eq!(
            rule.to_string(),
            "rule with handle 7 of chain FORWARD (table ip filter)"
        );
    }
}
