use std::fs;

use super::*;

fn load(files: &[(&str, &str)]) -> Result<Policy, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let first = dir.path().join(files[0].0);
    let loaded = Policy::load(&first, &Groups::default());
    loaded.map_err(|error| {
        error
            .to_string()
            .replace(&format!("{}/", dir.path().display()), "")
    })
}

const TOML: &str = r#"
version = 1
[addresses]
office = ["10.1.1.100", "10.1.1.110-10.1.1.111"]
web = "10.2.1.60"

[groups.intranet]
services = "@ldap,8443"

[[rule]]
name = "office reaches the intranet"
from = "office"
to = ["web", "10.2.1.61"]
services = ["@intranet", "22"]
must = "pass"
owner = "netops"
except = [{ from = "10.1.1.100", services = "22" }, { to = "10.2.1.61", services = "8443" }]

[[rule]]
name = "nobody logs in by telnet"
from = "office"
to = "web"
services = 23
must = "not-pass"
"#;

const YAML: &str = r#"
version: 1
addresses:
  office: [10.1.1.100, 10.1.1.110-10.1.1.111]
  web: 10.2.1.60
groups:
  intranet: { services: "@ldap,8443" }
rules:
  - name: office reaches the intranet
    from: office
    to: [web, 10.2.1.61]
    services: ["@intranet", "22"]
    must: pass
    owner: netops
    except:
      - { from: 10.1.1.100, services: "22" }
      - { to: 10.2.1.61, services: "8443" }
  - name: nobody logs in by telnet
    from: office
    to: web
    services: 23
    must: not-pass
"#;

#[test]
fn a_rule_is_every_question_but_those_left_out() {
    let policy = load(&[("p.toml", TOML)]).unwrap();
    let counts: Vec<usize> = policy
        .rules
        .iter()
        .map(|rule| rule.questions.len())
        .collect();
    // Three sources, two destinations, four services; without 22 from one, without 8443 to one.
    assert_eq!(counts, [24 - 2 - 3, 3]);
    assert_eq!(policy.rules[0].line, Some(11));
    assert_eq!(policy.rules[1].written.must, Must::NotPass);
}

#[test]
fn toml_yaml_and_json_say_the_same() {
    let json = serde_json::to_string(&toml::from_str::<toml::Value>(TOML).unwrap()).unwrap();
    let toml = load(&[("p.toml", TOML)]).unwrap();
    for (name, text) in [("p.yaml", YAML), ("p.json", &json)] {
        let other = load(&[(name, text)]).unwrap();
        let written = |policy: &Policy| -> Vec<RuleFile> {
            policy
                .rules
                .iter()
                .map(|rule| rule.written.clone())
                .collect()
        };
        assert_eq!(written(&other), written(&toml), "{name}");
        assert!(other.questions().eq(toml.questions()), "{name}");
    }
}

#[test]
fn the_schema_takes_what_is_read_and_refuses_what_is_not() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let json =
        |text: &str| serde_json::to_value(toml::from_str::<toml::Value>(text).unwrap()).unwrap();
    assert!(schema.is_valid(&json(TOML)));
    for wrong in [
        TOML.replace("must = \"pass\"", "must = \"drop\""),
        TOML.replace("owner", "onwer"),
        TOML.replace("version = 1", "version = 2"),
    ] {
        assert!(!schema.is_valid(&json(&wrong)), "{wrong}");
        assert!(load(&[("p.toml", &wrong)]).is_err());
    }
}

#[test]
fn files_include_files() {
    let base = "[addresses]\nweb = \"10.2.1.60\"\n[[rule]]\nname = \"b\"\nfrom = \"10.1.1.1\"\n\
                to = \"web\"\nservices = \"80\"\nmust = \"pass\"\n";
    let top = "include = [\"base.toml\"]\n[[rule]]\nname = \"t\"\nfrom = \"web\"\nto = \"10.1.1.1\"\n\
               services = \"25\"\nmust = \"not-pass\"\n";
    let policy = load(&[("top.toml", top), ("base.toml", base)]).unwrap();
    let names: Vec<&str> = policy
        .rules
        .iter()
        .map(|r| r.written.name.as_str())
        .collect();
    assert_eq!(names, ["b", "t"]);
    let circle = "include = [\"b.toml\"]\n";
    let error = load(&[("a.toml", circle), ("b.toml", "include = [\"a.toml\"]\n")]).unwrap_err();
    assert!(error.contains("include each other"), "{error}");
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let with = |from: &str, to: &str| load(&[("p.toml", &TOML.replace(from, to))]).unwrap_err();
    for (from, to, wants) in [
        (
            "from = \"office\"\nto = [",
            "from = \"ofice\"\nto = [",
            &["p.toml:11", "from", "did you mean `office`"][..],
        ),
        (
            "\"web\", \"10.2.1.61\"",
            "\"10.2.1.610\"",
            &["line 13", "10.2.1.610", "are allowed"][..],
        ),
        (
            "must = \"pass\"",
            "must = \"maybe\"",
            &["line 15", "maybe", "not-pass"][..],
        ),
        (
            "services = 23",
            "services = 99999",
            &["p.toml:20", "services", "99999", "1 to 65535"][..],
        ),
        (
            "@intranet\"",
            "@intarnet\"",
            &["p.toml:11", "services", "did you mean `@intranet`"][..],
        ),
        ("owner =", "onwer =", &["line 16", "onwer", "owner"][..]),
        (
            "version = 1",
            "version = 7",
            &["7 is not known", "1 is allowed"][..],
        ),
        (
            "nobody logs in by telnet",
            "office reaches the intranet",
            &["of its own"][..],
        ),
        (
            "{ from = \"10.1.1.100\", services = \"22\" }",
            "{ note = \"x\" }",
            &["except", "one of"][..],
        ),
        (
            "to = \"web\"\nservices = 23",
            "to = \"web\"\nservices = 22",
            &["leave it out", "22/tcp"][..],
        ),
        (
            "from = \"office\"\nto = \"web\"",
            "from = \"web\"\nto = \"web\"",
            &["asks nothing"][..],
        ),
    ] {
        let error = with(from, to);
        for want in wants {
            assert!(error.contains(want), "{to}: {want}: {error}");
        }
    }
    let yaml = YAML.replace("must: not-pass", "must: maybe");
    let error = load(&[("p.yaml", &yaml)]).unwrap_err();
    assert!(error.contains("maybe") && error.contains("22"), "{error}");
    assert!(load(&[("p.txt", "")]).unwrap_err().contains(".toml"));
}
