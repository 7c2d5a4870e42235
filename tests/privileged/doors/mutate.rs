//! A seeded loop of damaged facts: whatever is in them, there is a whole lab or none, nobody
//! panics or hangs, and nothing outside the lab changes.
//!
//! `TSIM_MUTATIONS=10000` sets how many inputs are tried, `TSIM_MUTATION_SEED=N` which one first;
//! the stage `mutations` of tests/run.sh tries ten thousand. How many were, and how many of them
//! made a lab, is printed every two hundred inputs and at the end.

use std::{
    collections::BTreeMap,
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tsim::lab::{self, UpOptions};

use crate::lab::{Place, fixture};

/// Inputs where nothing else is said.
const INPUTS: u64 = 300;

/// After how many inputs a line says how far the loop is.
const REPORT: u64 = 200;

/// Longer than any of these labs takes, however busy the machine is.
const MOST: Duration = Duration::from_secs(90);

/// Words that do something somewhere. DECOY is a directory that nobody may change.
const HOSTILE: [&str; 30] = [
    "save -file DECOY/file",
    "list -f DECOY/file",
    "quit",
    "include \"DECOY/file\"",
    "flush ruleset",
    "monitor",
    "define x = {",
    "-A FORWARD --modprobe=DECOY/file -m nosuch -j DROP",
    "-A FORWARD -s gw.example.org -j ACCEPT",
    "-A FORWARD -j NOSUCH",
    "*nat",
    "COMMIT",
    "EXIT_CODE: 1",
    "=== TSIM_SECTION_END:iptables_save ===",
    "=== TSIM_SECTION_START:nft_ruleset ===",
    "{\"file\": \"../decoy/file\"}",
    "table inet x {",
    "}",
    "\"",
    "\u{1b}[2J\u{202e}",
    "../../../../DECOY/file",
    "-rf",
    "$(touch DECOY/new)",
    "default via 10.0.0.1 dev nosuch",
    "0: from all lookup 4294967296",
    "99999999999999999999",
    "10.0.0.0/33",
    "dev lo",
    "net.ipv4.ip_forward = DECOY/file",
    "inet 300.1.1.1/24 scope global eth0",
];

/// xorshift64*, so that an input is its number.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        number as usize % limit.max(1)
    }
}

/// One to four changes: a cut, a doubled or moved piece, a piece of another file, hostile words.
fn mutate(random: &mut Random, text: &str, other: &str, decoy: &Path) -> String {
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    let others: Vec<&str> = other.lines().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(lines.len());
        let end = (at + 1 + random.below(20)).min(lines.len());
        match random.below(8) {
            0 => lines.truncate(at),
            1 => drop(lines.drain(at..end)),
            2 => {
                let twice = lines[at..end].to_vec();
                lines.splice(at..at, twice);
            }
            3 => {
                let from = random.below(others.len());
                let piece = others.iter().skip(from).take(1 + random.below(40));
                lines.splice(at..at, piece.map(ToString::to_string));
            }
            4 => {
                if let Some(line) = lines.get_mut(at) {
                    let cut = line.char_indices().nth(random.below(line.len()));
                    line.truncate(cut.map_or(0, |(byte, _)| byte));
                }
            }
            kind => {
                let words = HOSTILE[random.below(HOSTILE.len())];
                let words = words.replace("DECOY", &decoy.display().to_string());
                match (kind, lines.get_mut(at)) {
                    (5, Some(line)) => *line = format!("{line} {words}"),
                    (6, Some(line)) => *line = words,
                    _ => lines.insert(at.min(lines.len()), words),
                }
            }
        }
    }
    lines.join("\n") + "\n"
}

/// Facts to start from: each router of corp10 with one beside it, and small3; and the cases' rules
/// in the place of a router's.
fn seeds() -> Vec<BTreeMap<String, String>> {
    let read = |name: &str| -> Vec<(String, String)> {
        let mut files: Vec<PathBuf> = fs::read_dir(fixture(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file() && path.extension().is_some())
            .collect();
        files.sort();
        let one = |path: PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).unwrap())
        };
        files.into_iter().map(one).collect()
    };
    let corp10 = read("corp10");
    let facts: Vec<_> = corp10
        .into_iter()
        .filter(|(name, _)| name.ends_with("_facts.txt"))
        .collect();
    let pairs = facts.iter().zip(facts.iter().cycle().skip(1));
    let mut seeds: Vec<BTreeMap<_, _>> =
        pairs.map(|(a, b)| [a.clone(), b.clone()].into()).collect();
    let small3: BTreeMap<_, _> = read("small3").into_iter().collect();
    for (_, case) in read("cases")
        .into_iter()
        .filter(|(name, _)| name.ends_with(".toml"))
    {
        let rules: Vec<_> = case.split("\"\"\"").skip(1).step_by(2).collect();
        let mut lab = small3.clone();
        lab.insert("r2.nft".to_owned(), rules.concat());
        seeds.push(lab);
    }
    seeds.push(small3);
    seeds
}

/// A checksum of names and contents of everything in `dir`.
fn checksum(dir: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        path.hash(&mut hasher);
        if path.is_dir() {
            checksum(&path).hash(&mut hasher);
        } else {
            fs::read(&path).unwrap().hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[test]
#[allow(
    clippy::print_stdout,
    reason = "how far a loop of hours is, in the stage that shows it"
)]
fn no_facts_make_a_panic_a_hang_half_a_lab_or_a_change_outside() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().unwrap());
    let count = number("TSIM_MUTATIONS").unwrap_or(INPUTS);
    let first = number("TSIM_MUTATION_SEED").unwrap_or(1);
    let seeds = seeds();
    let (begin, mut labs) = (Instant::now(), 0);
    for (tried, seed) in (1_u64..).zip(first..first + count) {
        let lab = panic::catch_unwind(AssertUnwindSafe(|| try_one(seed, &seeds)));
        assert!(lab.is_ok(), "TSIM_MUTATION_SEED={seed} TSIM_MUTATIONS=1");
        labs += u64::from(lab.is_ok_and(|made| made));
        if tried.is_multiple_of(REPORT) || tried == count {
            let seconds = begin.elapsed().as_secs();
            println!("{tried} of {count} damaged facts, {labs} of them made a lab, {seconds} s");
        }
    }
    assert!(labs > 0 || count < REPORT, "no input reached the loaders");
}

/// Whether the facts made a lab.
fn try_one(seed: u64, seeds: &[BTreeMap<String, String>]) -> bool {
    let place = Place::new();
    let (decoy, registry) = (place.dir.path().join("decoy"), &place.config.registry_dir);
    for dir in [&decoy, registry] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("file"), "as it was").unwrap();
    }
    let before = (checksum(&decoy), checksum(registry));

    let mut random = Random::new(seed);
    let lab = &seeds[random.below(seeds.len())];
    let victim = random.below(lab.len());
    let other = &seeds[random.below(seeds.len())];
    let other = other.values().nth(random.below(other.len())).unwrap();
    let facts = place.dir.path().join("facts");
    fs::create_dir(&facts).unwrap();
    for (at, (name, text)) in lab.iter().enumerate() {
        let text = if at == victim {
            mutate(&mut random, text, other, &decoy)
        } else {
            text.clone()
        };
        fs::write(facts.join(name), text).unwrap();
    }

    let legacy = random.below(4) == 0;
    let begin = Instant::now();
    let up = place.up_with(
        &facts,
        UpOptions {
            legacy,
            ..UpOptions::default()
        },
    );
    assert!(begin.elapsed() < MOST, "{:?}", begin.elapsed());
    let made = up.is_ok();
    match up {
        Ok(up) => {
            let status = lab::status(&place.config, place.name()).unwrap();
            assert_eq!(status.missing, []);
            let raw = |c: char| c.is_control() || c == '\u{202e}';
            assert!(up.lab.warnings.iter().all(|w| !w.message.contains(raw)));
        }
        Err(error) => {
            let text = format!("{error:?}");
            assert!(
                !text.contains("anicked") && !text.contains("Worker"),
                "{text}"
            );
        }
    }
    place.down();
    place.assert_nothing_left();
    assert_eq!((checksum(&decoy), checksum(registry)), before);
    made
}
