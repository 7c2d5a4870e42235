//! The smallest chain that is still answered wrongly.

use super::{number, plan::Plan, script, world::World};

/// With 0, a chain that is answered wrongly is not made smaller, which takes minutes.
const SHRINK: &str = "TSIM_CHAINS_SHRINK";

/// Leaves out of a plan what can be left out as long as `wrong` says what is wrong, and prints what
/// remains, with its script.
#[allow(
    clippy::print_stdout,
    reason = "shown as it goes where asked for, since it takes minutes"
)]
pub(super) fn smallest(
    plan: Plan,
    mut why: String,
    wrong: impl Fn(&Plan) -> Option<String>,
) -> String {
    let mut smallest = plan;
    println!("seed {} is answered wrongly: {why}", smallest.seed);
    while number(SHRINK) != Some(0) {
        let still_wrong = |plan: Plan| Some((wrong(&plan)?, plan));
        match smallest.smaller().into_iter().find_map(still_wrong) {
            Some((still, plan)) => {
                let (routers, motifs) = (plan.routers, plan.motifs.len());
                println!(
                    "seed {} made smaller: {routers} routers, {motifs} motifs, {} services",
                    plan.seed,
                    plan.services.len()
                );
                (why, smallest) = (still, plan);
            }
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
