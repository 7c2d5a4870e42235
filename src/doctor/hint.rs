//! What an error message adds where rights are missing.

use super::{Area, Presence, advice, rights};

/// What to do about the rights that this process lacks and everything needs; none where it has
/// them. Looks at nothing else, so it takes no time.
#[must_use]
pub fn missing_rights() -> Option<String> {
    let lacks = rights::checks()
        .into_iter()
        .filter(|check| check.needed && check.state == Presence::No);
    let lacks: Vec<String> = lacks.map(|check| check.name).collect();
    let remedy = advice::of(Area::Rights, lacks.first()?).remedy;
    Some(format!("this process lacks {}: {remedy}", lacks.join(", ")))
}
