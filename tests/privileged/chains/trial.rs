//! One chain, made twice and compared.

use super::{
    ask::Rebuilt,
    plan::{Asked, Plan},
    truth::{Chain, Fate},
    verdict::Compared,
    world::World,
};

/// A chain with its lab, and what became of each service by each entry that is asked about.
pub(super) struct Trial {
    world: World,
    rebuilt: Rebuilt,
    fates: Vec<Vec<Fate>>,
}

impl Trial {
    /// Makes the chain and the lab, and sends; why that could not be done, if so.
    pub(super) fn begin(plan: &Plan) -> Result<Self, String> {
        let world = World::of(plan);
        let chain = Chain::make(plan, &world)?;
        let rebuilt = Rebuilt::of(plan, &chain, &world);
        let by = |mark| chain.send(plan, &world, mark);
        let fates = match plan.asked() {
            None | Some(Asked::First) => vec![by(0)],
            Some(Asked::Second) => vec![by(2)],
            Some(Asked::Any) => vec![by(0), by(2)],
        };
        Ok(Self {
            rebuilt,
            fates,
            world,
        })
    }

    /// Asks, and compares each answer with what became of the service. With `forgotten`, the walk
    /// leaves that out.
    pub(super) fn compare(
        &self,
        plan: &Plan,
        forgotten: Option<&str>,
    ) -> Result<Vec<Compared>, String> {
        let from = match plan.asked() {
            None | Some(Asked::Any) => None,
            Some(Asked::First) => Some("r0"),
            Some(Asked::Second) => Some("second"),
        };
        let answers = self.rebuilt.ask(plan, &self.world, from, forgotten)?;
        // What is measured by connections is no other with a walk that forgets.
        let proven = match forgotten {
            None if plan.dscp == 0 => self.rebuilt.ask_detailed(plan, &self.world, from)?,
            _ => Vec::new(),
        };
        let services = plan.services.iter().zip(answers).enumerate();
        let compared = services.map(|(number, (service, answer))| Compared {
            service: *service,
            answer,
            proven: proven.get(number).cloned(),
            fates: self.fates.iter().map(|by| by[number].clone()).collect(),
        });
        Ok(compared.collect())
    }
}

/// What is wrong with a chain, in words.
pub(super) fn wrong(compared: &Result<Vec<Compared>, String>) -> Option<String> {
    match compared {
        Err(error) => Some(error.clone()),
        Ok(all) => {
            let lines: Vec<String> = all.iter().filter_map(Compared::wrong).collect();
            (!lines.is_empty()).then(|| lines.join("\n"))
        }
    }
}
