//! What a quick job costs an ordinary user, beside the same job as root: one of each in turn, whoever was
//! second is first in the next pair.
//!
//! ```text
//! cargo bench --bench rootless             20 pairs of each
//! cargo bench --bench rootless -- --test   one of each, the small ones only
//! ```
//!
//! Services × routers, without reasons; then ten services that are stopped, and a thousand of which most get
//! through, with reasons. Wall and CPU time of the process with its children, the medians; and of the ratio of CPU
//! times pair by pair the median, the least and the greatest. Needs root, to be both.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench that cannot run shall say so and stop"
)]

mod common;

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{BenchLab, Cost, millis};

/// Somebody whom nobody else is.
const USER: u32 = 48_214;
const PAIRS: usize = 20;
/// From, to, services, routers, reasons.
const ASKED: [([&str; 2], &str, usize, &str); 7] = [
    (OPEN, "1-10", 1, "never"),
    (OPEN, "1-1000", 1, "never"),
    (OPEN, "1-10", 10, "never"),
    (OPEN, "1-1000", 10, "never"),
    (OPEN, "1-65535", 1, "never"),
    (["10.3.10.50", "10.1.1.100"], "1001-1010", 1, "auto"),
    (OPEN, "1-1000", 1, "auto"),
];
const OPEN: [&str; 2] = ["10.1.1.101", "10.2.1.50"];

fn main() {
    assert!(nix::unistd::geteuid().is_root(), "this bench needs root");
    let test = std::env::args().any(|a| a == "--test");
    let pairs = if test { 1 } else { PAIRS };
    let root = BenchLab::up("corp10");
    let user = User::up();
    // hq-gw first, because it has most rules.
    let names = root.lab.routers.iter().map(|r| r.name.to_string());
    let mut routers: Vec<String> = names.collect();
    routers.sort_by_key(|name| name != "hq-gw");
    println!("{HEAD}");
    for (from_to, services, count, explain) in ASKED {
        if test && services == "1-65535" {
            continue;
        }
        let routers = routers[..count].join(",");
        let [source, destination] = from_to;
        let question = ["-s", source, "-d", destination, "-P", services];
        let how = ["--routers", &routers, "--explain", explain, "--json"];
        let args = [&question[..], &how].concat();
        let as_root = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-quick"));
            let lab = root.lab.lab.as_str();
            cost(
                command
                    .arg("--config")
                    .arg(&root.file)
                    .args(["--lab", lab])
                    .args(&args),
            )
        };
        let as_user = || {
            cost(
                user.command("tsim-quick")
                    .args(["--lab", "mine"])
                    .args(&args),
            )
        };
        // The first job on a lab runs the tools.
        let _ = (as_root(), as_user());
        let both = |pair: usize| match pair % 2 {
            0 => (as_root(), as_user()),
            _ => {
                let user = as_user();
                (as_root(), user)
            }
        };
        let (root, user): (Vec<Cost>, Vec<Cost>) = (0..pairs).map(both).unzip();
        println!(
            "{services:>9} x {count:<2} {explain:<6} {}",
            line(&root, &user)
        );
    }
}

const HEAD: &str = "\
 services x routers        root        user    user/root
           reasons     wall   cpu  wall   cpu  cpu (min-max)";

fn line(root: &[Cost], user: &[Cost]) -> String {
    let wall = |costs: &[Cost]| middle(costs.iter().map(|c| millis(c.wall)));
    let cpu = |costs: &[Cost]| middle(costs.iter().map(|c| millis(c.cpu)));
    let pairs = root.iter().zip(user);
    let mut ratios: Vec<f64> = pairs.map(|(r, u)| millis(u.cpu) / millis(r.cpu)).collect();
    ratios.sort_by(f64::total_cmp);
    format!(
        "{:6.1} {:5.1} {:5.1} {:5.1}  {:.2} ({:.2}-{:.2})",
        wall(root),
        cpu(root),
        wall(user),
        cpu(user),
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
    )
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cost(command: &mut Command) -> Cost {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Cost::of(|| {
        let status = command.status().unwrap();
        assert!(matches!(status.code(), Some(0 | 1 | 3)), "{status}");
    })
}

/// Where they have the programs, in their home.
const BIN: &str = "bin";

/// An ordinary user with a lab of corp10, and with programs and facts that they can read.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn up() -> Self {
        // In memory, as root's registry is.
        let home = tempfile::tempdir_in("/dev/shm").unwrap();
        let user = Self { home };
        // Beside `tsim`, the directory of what runs.
        fs::create_dir(user.path(BIN)).unwrap();
        for program in [env!("CARGO_BIN_EXE_tsim"), env!("CARGO_BIN_EXE_tsim-quick")] {
            let name = Path::new(program).file_name().unwrap();
            fs::copy(program, user.path(BIN).join(name)).unwrap();
        }
        let facts = user.path("corp10");
        fs::create_dir(&facts).unwrap();
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-fixtures/corp10");
        for file in fs::read_dir(shipped).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), facts.join(file.file_name())).unwrap();
        }
        for dir in [user.path(""), facts.clone()] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
            chown(&dir, Some(USER), Some(USER)).unwrap();
        }
        let mut up = user.command("tsim");
        let up = up
            .args(["--quiet", "lab", "up", "mine", "--facts"])
            .arg(facts);
        assert!(up.status().unwrap().success());
        user
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.path(BIN).join(program));
        command.env_clear().current_dir("/");
        for variable in [
            "HOME",
            "XDG_RUNTIME_DIR",
            "XDG_STATE_HOME",
            "XDG_CONFIG_HOME",
        ] {
            command.env(variable, self.home.path());
        }
        command
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .uid(USER)
            .gid(USER);
        command
    }
}

/// Their keeper ends with the lab.
impl Drop for User {
    fn drop(&mut self) {
        let down = self.command("tsim").args(["lab", "down", "mine"]).status();
        if !down.is_ok_and(|status| status.success()) {
            println!("the lab of uid {USER} stays");
        }
    }
}
