//! What tools printed, kept from one job to the next.
//!
//! ```text
//! <labs_dir>/<lab>/
//!   rules.<dev>.<ino>       of nf_tables of the namespace with this identity
//!   rules.<dev>.<ino>.4     of its ip_tables, .6 of its ip6_tables
//!   rules.….new             while it is written
//! ```
//!
//! A file has what the kernel held when the tools were run, whole, and the texts: they are taken
//! only where the kernel holds the very same now, so that they can never be of other rules, whatever
//! became of the namespace, its number or the file. A file that is damaged is none. Nothing is
//! durable here: a file that is lost is made again.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    sync::Arc,
};

use super::RuleSource;
use crate::{
    firewall::{
        Support,
        iptables::tables,
        nft::{NftSocket, held::held, inventory::support_here},
    },
    model::fnv1a,
    netlink::{Netlink, object::Family},
    netns::{NetnsFd, NetnsId},
    registry::medium::{Directory, MAX_FILE, Medium},
};

const MAGIC: &[u8] = b"tsim rules 1\n";

/// A directory for what tools printed.
pub type Shelf = Arc<Directory>;

/// What is kept of one namespace.
#[derive(Debug)]
pub(super) struct KeptRules {
    shelf: Shelf,
    file: String,
    /// What the kernel held when the texts were printed; none where that is not known.
    held: Option<Vec<u8>>,
    texts: BTreeMap<String, String>,
    /// Whether there are texts that the file has not.
    fresh: bool,
}

impl KeptRules {
    /// What is kept of nf_tables of the namespace that is asked, as far as it is right now.
    pub(super) fn open(shelf: Shelf, source: &mut RuleSource<'_>) -> Self {
        let file = file_of(source.netns.id());
        let held = now(source);
        Self::of(shelf, file, held)
    }

    fn of(shelf: Shelf, file: String, held: Option<Vec<u8>>) -> Self {
        let read = held.as_ref().and_then(|_| read(&shelf, &file).ok()?);
        let same = read.filter(|(then, _)| Some(then) == held.as_ref());
        Self {
            texts: same.map(|(_, texts)| texts).unwrap_or_default(),
            shelf,
            file,
            held,
            fresh: false,
        }
    }

    /// What this command printed.
    pub(super) fn text(&self, command: &str) -> Option<&str> {
        self.texts.get(command).map(String::as_str)
    }

    pub(super) fn add(&mut self, command: String, text: String) {
        self.texts.insert(command, text);
        self.fresh = true;
    }

    /// Keeps what was printed, if the kernel holds the same as before it was. That it cannot be kept
    /// costs only time.
    pub(super) fn store(&mut self, source: &mut RuleSource<'_>) {
        if self.fresh {
            self.write_if(now(source).as_ref());
        }
    }

    /// Writes the file, if the kernel holds `now` what it held before.
    fn write_if(&mut self, now: Option<&Vec<u8>>) {
        self.fresh = false;
        if self.held.is_none() || now != self.held.as_ref() {
            return;
        }
        let new = format!("{}.new", self.file);
        let bytes = self.bytes();
        if bytes.len() as u64 > MAX_FILE {
            return;
        }
        let written = self.shelf.write(&new, &bytes);
        let written = written.and_then(|()| self.shelf.rename(&new, &self.file));
        if let Err(error) = written {
            tracing::debug!("rule texts are not kept: {error}");
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut add = |part: &[u8]| {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        };
        add(self.held.as_deref().unwrap_or_default());
        for (command, text) in &self.texts {
            add(command.as_bytes());
            add(text.as_bytes());
        }
        let sum = sum(&bytes);
        bytes.extend(sum);
        bytes
    }
}

fn file_of(NetnsId { dev, ino }: NetnsId) -> String {
    format!("rules.{dev:x}.{ino:x}")
}

/// What the tool `command` prints of the ip_tables or ip6_tables of a namespace, or what it printed
/// while these held the same; `print` runs it.
pub(in crate::firewall) fn legacy<E>(
    shelf: Option<&Shelf>,
    netns: &NetnsFd,
    family: Family,
    command: &str,
    print: impl FnOnce() -> Result<String, E>,
) -> Result<String, E> {
    let Some(shelf) = shelf else { return print() };
    let end = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let file = format!("{}.{end}", file_of(netns.id()));
    let held = || netns.enter(|| tables::held_here(family)).ok()?.ok()?;
    let mut kept = KeptRules::of(Shelf::clone(shelf), file, held());
    if let Some(text) = kept.text(command) {
        return Ok(text.to_owned());
    }
    let text = print()?;
    kept.add(command.to_owned(), text.clone());
    kept.write_if(held().as_ref());
    Ok(text)
}

/// A sum of all firewall rules that a namespace has, in nf_tables and in ip_tables; none where they
/// cannot be read, or change all the time.
pub(crate) fn sum_held(netns: &NetnsFd) -> Option<u64> {
    let read = || {
        let mut sum = Sum::NONE;
        if !matches!(support_here(), Support::No(_)) {
            sum.add(&held(&mut NftSocket::open_here().ok()?).ok()??.bytes);
        }
        for family in [Family::V4, Family::V6] {
            // There is no list of tables where the kernel has no ip_tables. What is not whole counts for
            // nothing.
            let mut with = sum;
            if tables::pieces_here(family, |piece| with.add(piece)).is_ok_and(|whole| whole) {
                sum = with;
            }
        }
        Some(sum.0)
    };
    netns.enter(read).ok()?
}

/// A sum of megabytes, eight bytes at a time. It spreads what differs by chance, and what differs tells it
/// where it was cut: all that is added has its length in it, or ends where the next kind of thing begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sum(u64);

impl Sum {
    /// Of nothing; not 0, of which zeros make 0 again.
    const NONE: Self = Self(0xcbf2_9ce4_8422_2325);

    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        let words = words.iter().chain((!rest.is_empty()).then_some(&last));
        for word in words {
            // An odd number whose bits are half ones, by the golden ratio.
            self.0 = (self.0.rotate_left(23) ^ u64::from_le_bytes(*word))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// What the kernel holds now.
fn now(source: &mut RuleSource<'_>) -> Option<Vec<u8>> {
    let held = held(source.socket).ok()??;
    let mut bytes = held.bytes;
    if held.interfaces {
        let links = Netlink::open(source.netns).ok()?.links().ok()?;
        for link in links {
            bytes.extend(link.index.to_ne_bytes());
            bytes.extend(link.name.as_str().as_bytes());
        }
    }
    Some(bytes)
}

type Contents = (Vec<u8>, BTreeMap<String, String>);

/// What a file has; none where it is not there, or damaged.
fn read(shelf: &Directory, file: &str) -> io::Result<Option<Contents>> {
    let Ok(Some(file)) = shelf.open_file(file) else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Option<Contents> {
    let (content, end) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    if sum(content) != end {
        return None;
    }
    let mut rest = content.strip_prefix(MAGIC)?;
    let held = part(&mut rest)?.to_vec();
    let mut texts = BTreeMap::new();
    while !rest.is_empty() {
        let command = String::from_utf8(part(&mut rest)?.to_vec()).ok()?;
        let text = String::from_utf8(part(&mut rest)?.to_vec()).ok()?;
        texts.insert(command, text);
    }
    Some((held, texts))
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (part, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    Some(part)
}

/// Tells a whole file from one that a medium has damaged; nobody else can write here.
fn sum(bytes: &[u8]) -> [u8; 8] {
    fnv1a(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(dir: &std::path::Path) -> KeptRules {
        KeptRules {
            shelf: Arc::new(Directory::open(dir).unwrap()),
            file: "rules.4.5".to_owned(),
            held: Some(vec![1, 2, 3]),
            texts: [("nft list".to_owned(), "table".to_owned())].into(),
            fresh: true,
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let kept = kept(dir.path());
        let bytes = kept.bytes();
        let (held, texts) = parse(&bytes).unwrap();
        assert_eq!((held, texts), (vec![1, 2, 3], kept.texts.clone()));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), None, "{cut}");
            let mut bad = bytes.clone();
            bad[cut] ^= 0x10;
            assert_eq!(parse(&bad), None, "{cut}");
        }
    }

    #[test]
    fn a_link_in_the_files_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = kept(dir.path());
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(elsewhere.path(), kept.bytes()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join(&kept.file)).unwrap();
        assert_eq!(read(&kept.shelf, &kept.file).unwrap(), None);
        assert_eq!(read(&kept.shelf, "rules.nowhere").unwrap(), None);
    }

    #[test]
    fn a_sum_tells_what_differs_anywhere() {
        let sum = |bytes: &[u8]| {
            let mut sum = Sum::NONE;
            sum.add(bytes);
            sum
        };
        let bytes: Vec<u8> = (0..100).collect();
        let whole = sum(&bytes);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                assert_ne!(sum(&other), whole, "{at} {bit}");
            }
        }
        assert_ne!(sum(&[0; 8]), Sum::NONE);
        assert_ne!(sum(&[0; 8]), sum(&[0; 16]));
    }
}
