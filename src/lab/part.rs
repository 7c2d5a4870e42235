//! Which routers of a lab stay as they are when its facts change, and how the others fit in.
//!
//! Pure. A router stays if its facts are the same and each of its wires can: the port at its other end
//! keeps its bridge, so the segments that routers which stay are on keep their numbers, and other
//! segments get the numbers that are left. Where two routers that could stay are on one segment that
//! was two, or on two that were one, the later one is made anew.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LabError,
    plan::{self, port_number},
    state::{InterfaceState, LabState, RouterState},
    topology::{Router, Segment, Topology},
};
use crate::model::{IfName, RouterName};

/// How a lab is to be changed.
#[derive(Debug, PartialEq)]
pub(super) struct Part {
    /// All routers as they are to be; those that stay have their namespaces.
    pub(super) routers: Vec<RouterState>,
    /// All segments as they are to be; one without ends is a bridge that nobody uses.
    pub(super) segments: Vec<Segment>,
    /// Routers that stay as they are.
    pub(super) kept: BTreeSet<RouterName>,
}

impl Part {
    /// What of the lab `state`, made from `before`, is to be made anew so that it is as `after`;
    /// routers of `forced` in any case, and all of them without `before`. Numbers of new ports begin
    /// with `next_port`.
    pub(super) fn between(
        (state, before): (&LabState, &Topology),
        after: &Topology,
        forced: &dyn Fn(&RouterName) -> bool,
        next_port: u32,
    ) -> Result<Self, LabError> {
        let mut routers = plan::routers(after)?;
        let mut kept = BTreeSet::new();
        for (planned, router) in routers.iter().zip(&after.routers) {
            let old = before.routers.iter().find(|old| old.name == router.name);
            let same = old.is_some_and(|old| !differs(old, router));
            let made = of(&state.routers, &router.name);
            if same && !forced(&router.name) && made.is_some_and(|made| fits(made, planned)) {
                kept.insert(router.name.clone());
            }
        }
        let numbers = loop {
            match numbers(&state.routers, &routers, &kept) {
                Ok(numbers) => break numbers,
                Err(name) => kept.remove(&name),
            };
        };
        let places = places(&numbers, after.segments.len());
        let mut next_port = next_port;
        for router in &mut routers {
            let stays = kept.contains(&router.name);
            let made = of(&state.routers, &router.name).filter(|_| stays);
            router.netns = made.and_then(|made| made.netns);
            for interface in &mut router.interfaces {
                let made = made.and_then(|made| made.interface(&interface.name));
                interface.segment = interface.segment.and_then(|at| places.get(at).copied());
                if let Some(made) = made {
                    interface.port.clone_from(&made.port);
                } else if interface.port.is_some() {
                    interface.port = Some(plan::port(next_port)?);
                    next_port += 1;
                }
            }
        }
        let count = places.iter().max().map_or(0, |most| most + 1);
        let mut segments: Vec<Segment> = (0..count).map(Segment::unused).collect();
        for (segment, place) in after.segments.iter().zip(&places) {
            if let Some(slot) = segments.get_mut(*place) {
                slot.clone_from(segment);
            }
        }
        Ok(Self {
            routers,
            segments,
            kept,
        })
    }
}

/// The first number that no port of the lab has.
pub(super) fn next_port<'a>(ports: impl Iterator<Item = &'a IfName>) -> u32 {
    let numbers = ports.filter_map(port_number);
    numbers.max().map_or(0, |most| most.saturating_add(1))
}

/// Whether anything but the place of its facts is another.
pub(super) fn differs(before: &Router, after: &Router) -> bool {
    let placeless = |router: &Router| {
        let mut router = router.clone();
        router.file.clear();
        for interface in &mut router.interfaces {
            // Its number depends on other routers.
            interface.segment = None;
            interface.link.ends.clear();
        }
        for ruleset in &mut router.rulesets {
            ruleset.origin.file.clear();
        }
        router
    };
    placeless(before) != placeless(after)
}

fn of<'a>(routers: &'a [RouterState], name: &RouterName) -> Option<&'a RouterState> {
    routers.iter().find(|router| router.name == *name)
}

/// Whether the router that was made has the interfaces that are planned, whatever they are plugged
/// into.
fn fits(made: &RouterState, planned: &RouterState) -> bool {
    let unplugged = |interface: &InterfaceState| {
        let mut interface = interface.clone();
        (interface.segment, interface.port) = (None, None);
        interface.link.ends.clear();
        interface
    };
    let all = |router: &RouterState| -> Vec<InterfaceState> {
        router.interfaces.iter().map(unplugged).collect()
    };
    made.netns.is_some() && all(made) == all(planned)
}

/// The numbers that segments of routers which stay have now, by the numbers that they are planned to
/// have; or the first router that cannot stay.
fn numbers(
    made: &[RouterState],
    planned: &[RouterState],
    kept: &BTreeSet<RouterName>,
) -> Result<BTreeMap<usize, usize>, RouterName> {
    let (mut now, mut taken) = (BTreeMap::new(), BTreeMap::new());
    for router in planned.iter().filter(|router| kept.contains(&router.name)) {
        let Some(old) = of(made, &router.name) else {
            return Err(router.name.clone());
        };
        for (old, new) in old.interfaces.iter().zip(&router.interfaces) {
            let same = match (old.segment, new.segment) {
                (Some(old), Some(new)) => {
                    *now.entry(new).or_insert(old) == old && *taken.entry(old).or_insert(new) == new
                }
                (old, new) => old == new,
            };
            if !same {
                return Err(router.name.clone());
            }
        }
    }
    Ok(now)
}

/// The place of each of `count` segments: its number where it has one, and the lowest that is free
/// where it has none.
fn places(numbers: &BTreeMap<usize, usize>, count: usize) -> Vec<usize> {
    let taken: BTreeSet<usize> = numbers.values().copied().collect();
    let mut free = (0..).filter(|number| !taken.contains(number));
    let place = |planned| match numbers.get(&planned) {
        Some(number) => Some(*number),
        None => free.next(),
    };
    (0..count).map_while(place).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::lab::{facts, topology};

    /// A lab of routers, each with the addresses of its interfaces `e0`, `e1` and so on, or the name of
    /// a segment before it.
    fn topology(routers: &[(&str, &[&str])]) -> Topology {
        let dir = tempfile::tempdir().unwrap();
        let facts = routers.iter().map(|(name, addresses)| {
            let interfaces = addresses.iter().enumerate().map(|(at, address)| {
                let (segment, address) = address.split_once(' ').unwrap_or(("", address));
                let segment = match segment {
                    "" => String::new(),
                    name => format!(r#", "segment": "{name}""#),
                };
                format!(r#"{{"name": "e{at}", "addresses": ["{address}"]{segment}}}"#)
            });
            let interfaces: Vec<String> = interfaces.collect();
            let text = format!(
                r#"{{"version": 1, "name": "{name}", "interfaces": [{}]}}"#,
                interfaces.join(", ")
            );
            let path = dir.path().join(format!("{name}.json"));
            std::fs::write(&path, text).unwrap();
            facts::load_file(&path).unwrap()
        });
        topology::build(facts.collect())
    }

    fn lab(topology: &Topology) -> LabState {
        let mut routers = plan::routers(topology).unwrap();
        for router in &mut routers {
            router.netns = Some(serde_json::from_str(r#"{"dev": 4, "ino": 7}"#).unwrap());
        }
        let name = "lab".parse().unwrap();
        LabState::new(name, PathBuf::new(), false, topology, routers).unwrap()
    }

    fn change(before: &Topology, after: &Topology, forced: &str) -> (Vec<String>, Part) {
        let state = lab(before);
        let forced = |name: &RouterName| name.as_str() == forced;
        let part = Part::between((&state, before), after, &forced, 100).unwrap();
        // Routers that stay keep each wire; others have none of those that there were.
        for router in &part.routers {
            let old = of(&state.routers, &router.name);
            for interface in router.interfaces.iter().filter(|i| i.port.is_some()) {
                let old = old.and_then(|old| old.interface(&interface.name));
                let same = |old: &InterfaceState| {
                    (&old.port, old.segment) == (&interface.port, interface.segment)
                };
                let stays = part.kept.contains(&router.name);
                assert_eq!(old.is_some_and(same), stays, "{}", router.name);
                let segment = &part.segments[interface.segment.unwrap()];
                assert!(
                    segment
                        .members
                        .iter()
                        .any(|(name, of)| *name == router.name && *of == interface.name)
                );
            }
        }
        let kept = part.kept.iter().map(ToString::to_string).collect();
        (kept, part)
    }

    const CHAIN: [(&str, &[&str]); 3] = [
        ("a", &["10.1.0.1/24", "10.9.1.1/30"]),
        ("b", &["10.9.1.2/30", "10.9.2.1/30"]),
        ("c", &["10.9.2.2/30", "10.3.0.1/24"]),
    ];

    #[test]
    fn routers_whose_facts_and_wires_are_the_same_stay() {
        let before = topology(&CHAIN);
        let (kept, part) = change(&before, &before, "");
        assert_eq!(kept, ["a", "b", "c"]);
        assert_eq!(part.segments, before.segments);
        let (kept, _) = change(&before, &before, "b");
        assert_eq!(kept, ["a", "c"]);
        // Segments of a router that is new or gone move no others.
        let mut more = CHAIN.to_vec();
        more.insert(0, ("0", &["10.0.0.1/24", "10.1.0.2/24"]));
        let more = topology(&more);
        assert_eq!(change(&before, &more, "").0, ["a", "b", "c"]);
        let (kept, part) = change(&more, &before, "");
        assert_eq!(kept, ["a", "b", "c"]);
        let unused: Vec<bool> = part.segments.iter().map(|s| s.members.is_empty()).collect();
        assert_eq!(unused, [true, false, false, false, false]);
        let mut other = CHAIN.to_vec();
        other[1].1 = &["10.9.1.2/30", "10.9.2.1/30", "10.7.0.1/24"];
        let (kept, part) = change(&before, &topology(&other), "");
        assert_eq!(kept, ["a", "c"]);
        assert_eq!(part.segments.len(), 5);
    }

    #[test]
    fn segments_that_become_one_or_two_have_one_router_made_anew() {
        let two = topology(&[("a", &["x 10.1.0.1/24"]), ("b", &["y 10.1.9.1/24"])]);
        let one = topology(&[("a", &["x 10.1.0.1/24"]), ("b", &["x 10.1.9.1/24"])]);
        assert_eq!((two.segments.len(), one.segments.len()), (2, 1));
        assert_eq!(change(&two, &one, "").0, ["a"]);
        assert_eq!(change(&one, &two, "").0, ["a"]);
    }
}
