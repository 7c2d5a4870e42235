//! A kernel that is a directory: it outlives the process that changes it, as the real one does.
//!
//! ```text
//! kernel/ns/LAB@HOST/complete      a namespace; without the file it is half made
//! kernel/neighbours/KEY            a neighbour entry: its MAC
//! kernel/taps/RUN-ID               a tap: its owner
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tsim::{
    fault,
    model::{HostId, RouterId},
    netlink::object::{Mac, Neighbour},
    registry::{
        HostKernel, HostSpec, KernelError, NeighbourKernel, NeighbourKey, Owner, TapKernel, TapNote,
    },
};

#[derive(Debug, Clone)]
pub(crate) struct FakeKernel {
    root: PathBuf,
    leaves_taps: bool,
}

impl FakeKernel {
    pub(crate) fn new(dir: &Path) -> Self {
        let root = dir.join("kernel");
        for sub in ["ns", "neighbours", "taps"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        Self {
            root,
            leaves_taps: false,
        }
    }

    /// The same for a job that looks for no taps of dead jobs.
    pub(crate) fn leaving_taps(self) -> Self {
        Self {
            leaves_taps: true,
            ..self
        }
    }

    fn ns(&self, host: &HostId) -> PathBuf {
        self.root.join("ns").join(host.to_string())
    }

    fn entry(&self, key: &NeighbourKey) -> PathBuf {
        let name = key.to_string().replace('|', "+");
        self.root.join("neighbours").join(name)
    }

    pub(crate) fn put_neighbour(&self, key: &NeighbourKey, mac: &str) {
        fs::write(self.entry(key), mac).unwrap();
    }

    pub(crate) fn put_tap(&self, run: &str, owner: &Owner) {
        let owner = serde_json::to_vec(owner).unwrap();
        fs::write(self.root.join("taps").join(run), owner).unwrap();
    }

    pub(crate) fn is_complete(&self, host: &HostId) -> bool {
        self.ns(host).join("complete").exists()
    }

    /// Everything that the kernel holds, for comparing.
    pub(crate) fn snapshot(&self) -> Vec<String> {
        let mut all = Vec::new();
        for sub in ["ns", "neighbours", "taps"] {
            for entry in fs::read_dir(self.root.join(sub)).unwrap() {
                let path = entry.unwrap().path();
                let content = fs::read_to_string(&path).unwrap_or_default();
                all.push(format!("{} {content}", path.display()));
            }
        }
        all.sort();
        all
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl HostKernel for FakeKernel {
    fn host_exists(&mut self, host: &HostId) -> Result<bool, KernelError> {
        Ok(self.ns(host).exists())
    }

    fn create_host(&mut self, spec: &HostSpec) -> Result<(), KernelError> {
        fault::step("kernel.ns.make")?;
        // Fails if remains are there: the registry has to remove them first.
        fs::create_dir(self.ns(&spec.id))?;
        fault::step("kernel.ns.complete")?;
        fs::write(self.ns(&spec.id).join("complete"), "")?;
        Ok(())
    }

    fn remove_host(&mut self, host: &HostId) -> Result<(), KernelError> {
        fault::step("kernel.ns.spoil")?;
        absent_is_fine(fs::remove_file(self.ns(host).join("complete")))?;
        fault::step("kernel.ns.remove")?;
        absent_is_fine(fs::remove_dir(self.ns(host)))?;
        Ok(())
    }

    fn list_hosts(&mut self) -> Result<Vec<HostId>, KernelError> {
        let mut hosts = Vec::new();
        for entry in fs::read_dir(self.root.join("ns"))? {
            hosts.push(entry?.file_name().to_string_lossy().parse()?);
        }
        Ok(hosts)
    }
}

impl NeighbourKernel for FakeKernel {
    fn neighbour(&mut self, key: &NeighbourKey) -> Result<Option<Neighbour>, KernelError> {
        match fs::read_to_string(self.entry(key)) {
            Ok(mac) => Ok(Some(Neighbour {
                dev: key.interface.clone(),
                address: key.address,
                mac: Some(mac.parse()?),
                state: 0x80,
            })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn set_neighbour(&mut self, key: &NeighbourKey, mac: Mac) -> Result<(), KernelError> {
        fault::step("kernel.neighbour.set")?;
        fs::write(self.entry(key), mac.to_string())?;
        Ok(())
    }

    fn restore_neighbour(
        &mut self,
        key: &NeighbourKey,
        before: Option<&Neighbour>,
    ) -> Result<(), KernelError> {
        fault::step("kernel.neighbour.restore")?;
        match before.and_then(|n| n.mac) {
            Some(mac) => fs::write(self.entry(key), mac.to_string())?,
            None => absent_is_fine(fs::remove_file(self.entry(key)))?,
        }
        Ok(())
    }
}

impl TapKernel for FakeKernel {
    fn sweeps_taps(&self) -> bool {
        !self.leaves_taps
    }

    fn sweep_taps(
        &mut self,
        _router: Option<&RouterId>,
        is_gone: &dyn Fn(&Owner) -> bool,
        dry_run: bool,
    ) -> Result<Vec<String>, KernelError> {
        let mut swept = Vec::new();
        if self.leaves_taps {
            return Ok(swept);
        }
        for entry in fs::read_dir(self.root.join("taps"))? {
            let tap = entry?.path();
            let owner: Owner = serde_json::from_slice(&fs::read(&tap)?)?;
            if !is_gone(&owner) {
                continue;
            }
            if !dry_run {
                fault::step("kernel.tap.remove")?;
                absent_is_fine(fs::remove_file(&tap))?;
            }
            swept.push(tap.file_name().unwrap_or_default().display().to_string());
        }
        Ok(swept)
    }
    fn remove_noted(&mut self, note: &TapNote) -> Result<bool, KernelError> {
        fault::step("kernel.tap.remove")?;
        absent_is_fine(fs::remove_file(
            self.root.join("taps").join(note.run_id.as_str()),
        ))?;
        Ok(true)
    }

    fn forget_connections(&mut self, _notes: &[TapNote]) -> Result<(), KernelError> {
        Ok(())
    }
}
