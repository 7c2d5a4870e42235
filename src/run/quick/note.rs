//! Notes in the registry of what a job's taps leave in a router if it is killed.

use std::sync::Arc;

use crate::{
    firewall::{Notebook, NotebookError},
    model::{LabName, RouterId, RouterName, RunId},
    netns::NetnsFd,
    registry::{RegistryManager, TapNote},
};

/// Where a job notes its taps.
#[derive(Debug, Clone)]
pub(super) struct TapNotes {
    pub(super) registry: RegistryManager,
    pub(super) lab: LabName,
    pub(super) run_id: RunId,
}

impl TapNotes {
    /// Its notes about one router.
    pub(super) fn about(&self, router: &RouterName, netns: &NetnsFd) -> Arc<dyn Notebook> {
        let note = TapNote {
            run_id: self.run_id.clone(),
            router: RouterId::new(self.lab.clone(), router.clone()),
            netns: netns.id(),
            tool: String::new(),
            made: Vec::new(),
            owner: self.registry.owner().clone(),
        };
        let registry = self.registry.clone();
        Arc::new(RouterNotes { registry, note })
    }
}

/// Notes about one router.
#[derive(Debug)]
struct RouterNotes {
    registry: RegistryManager,
    /// But for the tool and what is made.
    note: TapNote,
}

impl RouterNotes {
    fn with(&self, tool: &str, made: Vec<String>) -> TapNote {
        TapNote {
            tool: tool.to_owned(),
            made,
            ..self.note.clone()
        }
    }
}

impl Notebook for RouterNotes {
    fn of_others(&self, tool: &str) -> Result<Vec<String>, NotebookError> {
        let mut notes = self.registry.tap_notes()?;
        notes.retain(|note| {
            note.netns == self.note.netns && note.tool == tool && note.owner != self.note.owner
        });
        Ok(notes.into_iter().flat_map(|note| note.made).collect())
    }

    fn note(&self, tool: &str, made: Vec<String>) -> Result<(), NotebookError> {
        Ok(self.registry.note_tap(&self.with(tool, made))?)
    }

    fn strike(&self, tool: &str) -> Result<(), NotebookError> {
        Ok(self.registry.strike_tap(&self.with(tool, Vec::new()))?)
    }
}
