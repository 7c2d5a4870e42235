//! What interrupted work and damaged files leave, and how labs are got rid of all the same.

use std::{fs, path::PathBuf};

use nix::mount::{MntFlags, umount2};
use tsim::{
    config::Config,
    lab::{self, LabError, Options},
    model::WithCauses,
};

use crate::lab::{Place, fixture};

fn state_file(place: &Place) -> PathBuf {
    place
        .config
        .labs_dir
        .join(place.name().as_str())
        .join("lab.json")
}

#[test]
fn a_name_without_its_namespace_goes_with_the_lab() {
    let place = Place::new();
    let lab = place.up(&fixture("small3")).lab;
    let router = &lab.routers[0].name;
    // As `down` leaves it when it is killed between its two steps.
    let path = place.bed.dir.path(&place.bed.name(router.as_str()));
    umount2(&path, MntFlags::MNT_DETACH).unwrap();
    assert!(path.exists());
    let status = lab::status(&place.config, place.name()).unwrap();
    assert_eq!(status.missing, [place.bed.name(router.as_str())]);
    let removed = place.down();
    assert!(removed.foreign.is_empty(), "{removed:?}");
    place.assert_nothing_left();
}

#[test]
fn a_damaged_lab_hides_no_other_and_goes_by_force() {
    for damage in [
        // Cut off in the middle, another release's, nothing.
        |text: &str| text[..text.len() / 2].to_owned(),
        |text: &str| text.replacen("\"version\": 2", "\"version\": 99", 1),
        |_: &str| String::new(),
    ] {
        let place = Place::new();
        place.up(&fixture("small3"));
        let file = state_file(&place);
        let text = fs::read_to_string(&file).unwrap();
        let damaged = damage(&text);
        assert_ne!(damaged, text);
        fs::write(&file, damaged).unwrap();

        let listed = place.tsim(&["lab", "list"]);
        let said = String::from_utf8_lossy(&listed.stderr).into_owned();
        assert!(listed.status.success(), "{said}");
        let name = place.name().as_str();
        assert!(
            said.contains(&format!("lab {name} cannot be read")),
            "{said}"
        );
        assert!(!place.tsim(&["lab", "down", name]).status.success());
        let forced = place.tsim(&["lab", "down", name, "--force"]);
        let said = String::from_utf8_lossy(&forced.stderr).into_owned();
        assert!(forced.status.success(), "{said}");
        place.assert_nothing_left();
    }
}

#[test]
fn a_lab_of_another_registry_is_called_so() {
    let place = Place::new();
    place.up(&fixture("small3"));
    let other = Config {
        registry_dir: place.dir.path().join("other"),
        labs_dir: place.dir.path().join("other-labs"),
        ..Config::default()
    };
    let facts = fixture("small3");
    let refused = lab::up_from(&other, place.name(), &facts, Options::default(), &());
    let refused = refused.unwrap_err();
    let text = WithCauses(&refused).to_string();
    assert!(text.contains("of another registry"), "{text}");
    assert!(!matches!(refused, LabError::Taken { .. }));
    place.down();
    place.assert_nothing_left();
}
