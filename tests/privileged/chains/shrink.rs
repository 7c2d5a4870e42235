//! The smallest chain that is still answered wrongly.

use super::{plan::Plan, script, world::World};

/// Leaves out of a plan what can be left out as long as `wrong` says what is wrong, and prints what
/// remains, with its script.
pub(super) fn smallest(
    plan: Plan,
    mut why: String,
    wrong: impl Fn(&Plan) -> Option<String>,
) -> String {
    let mut smallest = plan;
    loop {
        let still_wrong = |plan: Plan| Some((wrong(&plan)?, plan));
        match smallest.smaller().into_iter().find_map(still_wrong) {
            Some((still, plan)) => (why, smallest) = (still, plan),
            None => break,
        }
    }
    let world = World::of(&smallest);
    let script = script::of(&world, smallest.loader, "chain");
    let (source, destination) = &world.asked;
    format!(
        "TSIM_CHAINS_SEED={} TSIM_CHAINS=1: {why}\n{smallest:#?}\n\
         asked: {source} to {destination}\n{script}",
        smallest.seed
    )
}
