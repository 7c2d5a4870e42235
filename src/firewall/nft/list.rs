//! What a namespace's ruleset consists of: chains, and the order of rules.

use std::collections::HashMap;

use super::{DUMP_ATTEMPTS, NftError, NftSocket, kernel, socket::Dumped};
use crate::firewall::TableFamily;

/// `NFTA_RULE_*`, linux/netfilter/nf_tables.h.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;

/// Handles of the rules of one table, per chain and in the order of evaluation.
pub type RuleOrder = HashMap<String, Vec<u64>>;

/// Reads the order of the rules of one table; empty when there is no such table.
///
/// # Errors
/// [`NftError`].
pub fn rule_order(
    socket: &mut NftSocket,
    family: TableFamily,
    table: &str,
) -> Result<RuleOrder, NftError> {
    let what = "reading the order of rules";
    for _ in 0..DUMP_ATTEMPTS {
        let mut order = RuleOrder::new();
        let select = [(RULE_TABLE, table)];
        let dumped = socket.dump(kernel::GET_RULE, family.0, &select, what, |rule| {
            // Kernels before 4.12 know no selection and list every table.
            let here = rule.text(RULE_TABLE) == Some(table);
            if let (true, Some(chain), Some(handle)) =
                (here, rule.text(RULE_CHAIN), rule.be64(RULE_HANDLE))
            {
                match order.get_mut(chain) {
                    Some(handles) => handles.push(handle),
                    None => _ = order.insert(chain.to_owned(), vec![handle]),
                }
            }
        })?;
        if dumped == Dumped::Whole {
            return Ok(order);
        }
    }
    Err(NftError::Interrupted(what))
}
