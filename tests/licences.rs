//! Every dependency's licence is one that deny.toml allows, and none comes from outside the
//! registry. Advisories need a data base from the network and are left to cargo-deny.

#![allow(clippy::unwrap_used)]
use std::process::Command;

use serde_json::Value;

fn allowed() -> Vec<spdx::Licensee> {
    let text = std::fs::read_to_string("deny.toml").unwrap();
    let deny: toml::Table = text.parse().unwrap();
    let list = deny["licenses"]["allow"].as_array().unwrap();
    list.iter()
        .map(|l| spdx::Licensee::parse(l.as_str().unwrap()).unwrap())
        .collect()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn every_dependency_has_an_allowed_licence_and_comes_from_the_registry() {
    let allowed = allowed();
    let mut refused = Vec::new();
    for package in packages() {
        let name = format!("{} {}", package["name"], package["version"]);
        let licence = package["license"]
            .as_str()
            .unwrap_or_default()
            .replace('/', " OR ");
        let fine = spdx::Expression::parse(&licence).is_ok_and(|expression| {
            expression.evaluate(|need| allowed.iter().any(|l| l.satisfies(need)))
        });
        if !fine {
            refused.push(format!("{name}: licence {licence:?}"));
        }
        match package["source"].as_str() {
            None => assert_eq!(package["name"], "tsim"),
            Some(source) if source.starts_with("registry+") => {}
            Some(source) => refused.push(format!("{name}: from {source}")),
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}
