//! LLDP with the daemon that routers of Debian have: what it says of each link joins the right ends.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use tsim::{
    lab::facts::{COLLECTOR, load_file},
    netns::NetnsFd,
};

use crate::lab::{Place, tool};

/// lldpd(8) of a router, with a host name and a /run of its own. It ends with this.
struct Daemon {
    child: Child,
    name: String,
}

impl Daemon {
    fn start(netns: &NetnsFd, name: &str) -> Self {
        let script = format!(
            "hostname {name}.example.net
            mount -t tmpfs tmpfs /run
            mkdir /run/lldpd
            exec lldpd -d"
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--uts", "sh", "-ec", &script])
            .stderr(Stdio::piped());
        let mut child = netns.enter(|| command.spawn()).unwrap().unwrap();
        // It answers once its own lldpcli(8) has told it its settings.
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let is_ready = |line: &String| line.contains("should resume operations");
        let ready = log.find(|line| is_ready(line.as_ref().unwrap()));
        assert!(ready.is_some(), "lldpd ended");
        // It must not find the pipe closed.
        std::thread::spawn(move || log.for_each(drop));
        Self {
            child,
            name: name.to_owned(),
        }
    }

    /// What a command that sees its files prints, in the router's namespace.
    fn run(&self, netns: &NetnsFd, command: &[&str]) -> String {
        let pid = self.child.id().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--mount", "--target", &pid]).args(command);
        let output = netns.enter(|| nsenter.output()).unwrap().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asks until it has heard somebody on each of `links`. It tells of who comes, and not whether
    /// somebody had come before it was asked to tell.
    fn await_heard(&self, netns: &NetnsFd, links: &[&str]) {
        let heard = |text: &str| {
            let key = |link: &&str| text.contains(&format!("lldp.{link}.port.descr="));
            links.iter().all(key)
        };
        let mut asked = 0;
        while !heard(&self.run(netns, &["lldpctl", "-f", "keyvalue"])) {
            asked += 1;
            assert!(asked < 1_000, "{} hears nobody", self.name);
        }
    }

    fn collect(&self, netns: &NetnsFd, dir: &Path) -> String {
        let text = self.run(netns, &["sh", "-c", COLLECTOR, "sh", &self.name]);
        fs::write(dir.join(format!("{}_facts.txt", self.name)), &text).unwrap();
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ends of links with several, as `router:interface`.
fn joined(dir: &Path) -> Vec<String> {
    let place = Place::new();
    let lab = place.up(dir).lab;
    let ends = lab.segments.iter().map(|segment| {
        let ends = segment.members.iter();
        let ends = ends.map(|(router, interface)| format!("{router}:{interface}"));
        ends.collect::<Vec<_>>()
    });
    let several = ends.filter(|ends| ends.len() > 1);
    let mut several: Vec<String> = several.map(|ends| ends.join(" ")).collect();
    several.sort();
    place.down();
    several
}

#[test]
fn what_lldpd_says_joins_links_that_nothing_else_tells() {
    let place = Place::new();
    let [a, b] = ["ra", "rb"].map(|name| place.bed.netns(name));
    let at_b = place.bed.name("rb").to_string();
    for (number, link) in [(0, "swp0"), (1, "swp1")] {
        let mac = format!("02:00:5e:00:01:0{number}");
        let other = format!("eth{number}");
        let make = format!(
            "link add {other} address 02:00:5e:00:02:0{number} type veth peer {link} address {mac} \
             netns {at_b}"
        );
        tool(&a, "ip", &make.split(' ').collect::<Vec<_>>());
        tool(&a, "ip", &["link", "set", &other, "up"]);
        tool(&b, "ip", &["link", "set", link, "up"]);
    }
    // Whoever describes a port hides its name.
    tool(&a, "ip", &["link", "set", "eth1", "alias", "uplink"]);
    let daemons = [(&a, "ra"), (&b, "rb")].map(|(at, name)| (Daemon::start(at, name), at));
    for (daemon, at) in &daemons {
        daemon.run(at, &["lldpcli", "update"]);
    }
    let [(of_a, _), (of_b, _)] = &daemons;
    of_a.await_heard(&a, &["eth0", "eth1"]);
    of_b.await_heard(&b, &["swp0", "swp1"]);

    let facts = tempfile::tempdir().unwrap();
    let text = of_a.collect(&a, facts.path());
    of_b.collect(&b, facts.path());
    let read = load_file(&facts.path().join("ra_facts.txt")).unwrap();
    let strange = read.warnings.iter().map(|warning| &warning.message);
    let strange: Vec<_> = strange.filter(|text| text.contains("lldp")).collect();
    assert_eq!(strange, [""; 0]);
    let both = ["ra:eth0 rb:swp0", "ra:eth1 rb:swp1"];
    assert_eq!(joined(facts.path()), both);

    // One of the two suffices, and a description is no name.
    let file = facts.path().join("ra_facts.txt");
    let told = |line: &&str| !line.starts_with("lldp.");
    let silent: Vec<&str> = text.lines().filter(told).collect();
    fs::write(&file, silent.join("\n")).unwrap();
    assert_eq!(joined(facts.path()), both);

    // A daemon that was told to says names in the place of hardware addresses.
    fs::write(&file, &text).unwrap();
    let by_name = ["lldpcli", "configure", "lldp", "portidsubtype", "ifname"];
    of_a.run(&a, &by_name);
    of_a.run(&a, &["lldpcli", "update"]);
    let says_name = |text: &str| text.contains("lldp.swp1.port.ifname=eth1");
    let mut asked = 0;
    while !says_name(&of_b.run(&b, &["lldpctl", "-f", "keyvalue"])) {
        asked += 1;
        assert!(asked < 1_000, "no name is said");
    }
    fs::write(&file, silent.join("\n")).unwrap();
    of_b.collect(&b, facts.path());
    assert_eq!(joined(facts.path()), both);
}
