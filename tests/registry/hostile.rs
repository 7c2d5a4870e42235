//! A directory that somebody has tampered with: a clear error each, nothing followed, nothing lost.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tsim::registry::{Holding, JobType, ManagedBy, RegistryError, RegistryManager};

use crate::child::{Site, info, patience, router, spec};

/// A registry on a disk with one host in it.
fn site_with_a_host() -> (Site, PathBuf) {
    with_a_host(Site::as_on_disk())
}

fn with_a_host(site: Site) -> (Site, PathBuf) {
    let mut job = site.job("a");
    job.check_and_register_host(&spec(1), ManagedBy::Operator, &patience())
        .unwrap();
    let file = site.registry_dir().join("hosts.json");
    (site, file)
}

/// Reading and writing both fail, and the error says why.
fn assert_refused(site: &Site, why: &str) {
    let registry = site.open();
    let error = registry.hosts().unwrap_err();
    assert!(matches!(error, RegistryError::Unsafe { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("hosts.json") && text.contains(why), "{text}");
    let mut job = site.job("b");
    job.check_and_register_host(&spec(2), ManagedBy::Operator, &patience())
        .unwrap_err();
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let (site, file) = site_with_a_host();
    let elsewhere = site.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    let content = fs::read(&elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert_refused(&site, "symbolic link");
    assert_eq!(fs::read(&elsewhere).unwrap(), content);
}

#[test]
fn a_link_in_place_of_the_temporary_file_is_replaced_not_followed() {
    let (site, file) = site_with_a_host();
    let victim = site.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, file.with_extension("json.tmp")).unwrap();
    let mut job = site.job("b");
    job.check_and_register_host(&spec(2), ManagedBy::Operator, &patience())
        .unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(site.open().hosts().unwrap().len(), 2);
}

#[test]
fn a_link_in_place_of_the_copy_is_not_followed_and_the_change_is_made() {
    let (site, file) = site_with_a_host();
    let victim = site.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let copy = file.with_extension("json.bak");
    fs::remove_file(&copy).unwrap();
    symlink(&victim, copy).unwrap();
    let mut job = site.job("b");
    job.check_and_register_host(&spec(2), ManagedBy::Operator, &patience())
        .unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_fifo_makes_nobody_wait() {
    let (site, file) = site_with_a_host();
    fs::remove_file(&file).unwrap();
    mkfifo(&file, Mode::from_bits_truncate(0o600)).unwrap();
    assert_refused(&site, "not a regular file");
}

#[test]
fn a_file_of_200_mb_is_not_read() {
    let (site, file) = site_with_a_host();
    File::create(&file).unwrap().set_len(200 << 20).unwrap();
    assert_refused(&site, "more than 67108864 bytes");
    assert_eq!(fs::metadata(&file).unwrap().len(), 200 << 20, "it is kept");
}

#[test]
fn a_world_writable_file_is_refused() {
    let (site, file) = site_with_a_host();
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    assert_refused(&site, "0666");
}

#[test]
fn a_world_writable_or_linked_directory_is_refused() {
    let (site, _) = site_with_a_host();
    let dir = site.registry_dir();
    fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
    let error = RegistryManager::open(&site.config()).unwrap_err();
    assert!(error.to_string().contains("0777"), "{error}");
    fs::set_permissions(&dir, Permissions::from_mode(0o770)).unwrap();
    RegistryManager::open(&site.config()).expect("a group may share a registry");

    let moved = site.path().join("moved");
    fs::rename(&dir, &moved).unwrap();
    symlink(&moved, &dir).unwrap();
    let error = RegistryManager::open(&site.config()).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let site = Site::new();
    fs::write(site.registry_dir(), "").unwrap();
    let error = RegistryManager::open(&site.config()).unwrap_err();
    assert!(error.to_string().contains("registry"), "{error}");
}

#[test]
fn a_damaged_file_is_set_aside_and_the_copy_takes_its_place() {
    let (site, file) = site_with_a_host();
    fs::write(&file, "{\"lab@src-1\": {\"primary_ip\": ").unwrap();
    let registry = site.open();
    assert_eq!(registry.hosts().unwrap().len(), 1);
    let repairs = registry.take_repairs();
    assert!(
        repairs[0].from_copy && repairs[0].file == "hosts.json",
        "{repairs:?}"
    );
    assert!(site.registry_dir().join(&repairs[0].set_aside).exists());
}

#[test]
fn a_file_and_a_copy_that_are_both_damaged_are_kept_for_the_operator() {
    let (site, file) = site_with_a_host();
    for damaged in [&file, &file.with_extension("json.bak")] {
        fs::write(damaged, "]").unwrap();
    }
    let registry = site.open();
    assert_eq!(registry.hosts().unwrap(), []);
    let repairs = registry.take_repairs();
    assert!(!repairs[0].from_copy, "{repairs:?}");
    let aside = site.registry_dir().join(&repairs[0].set_aside);
    assert_eq!(fs::read_to_string(aside).unwrap(), "]");
}

#[test]
fn in_memory_no_copy_is_kept_and_an_old_one_is_not_believed() {
    let (site, file) = with_a_host(Site::new());
    let copy = file.with_extension("json.bak");
    assert!(!copy.exists());
    fs::copy(&file, copy).unwrap();
    fs::write(&file, "]").unwrap();
    let registry = site.open();
    assert_eq!(registry.hosts().unwrap(), []);
    let repairs = registry.take_repairs();
    assert!(!repairs[0].from_copy, "{repairs:?}");
    assert!(site.registry_dir().join(&repairs[0].set_aside).exists());
}

#[test]
fn fields_that_tsim_does_not_know_survive_a_change_of_the_same_record() {
    let (site, file) = site_with_a_host();
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("\"primary_ip\"", "\"colour\":[1,\"blue\"],\"primary_ip\"");
    fs::write(&file, text).unwrap();
    let mut job = site.job("b");
    let host = spec(1).id;
    job.update_host(&host, |record| record.creating = false, &patience())
        .unwrap();
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .contains("\"colour\":[1,\"blue\"]")
    );
}

#[test]
fn a_record_of_another_programs_shape_is_named_and_does_not_stop_other_hosts() {
    let (site, file) = site_with_a_host();
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replacen('{', "{\"lab@old\": {\"primary_ip\": 7},", 1);
    fs::write(&file, text).unwrap();
    let registry = site.open();
    let hosts = registry.hosts().unwrap();
    assert_eq!(hosts.len(), 1, "{hosts:?}");
    let repairs = registry.take_repairs();
    let [repair] = &repairs[..] else {
        panic!("{repairs:?}");
    };
    assert_eq!(repair.file, "hosts.json");
    assert!(repair.reason.contains("lab@old"), "{repair:?}");
    let aside = fs::read_to_string(site.registry_dir().join(&repair.set_aside)).unwrap();
    assert_eq!(
        aside, "lab@old\t{\"primary_ip\": 7}\n",
        "nothing is thrown away"
    );
    registry.host(&spec(1).id).unwrap();
    registry.hosts().unwrap();
    assert_eq!(registry.take_repairs(), []);
}

#[test]
fn a_damaged_record_in_any_file_stops_no_job() {
    let site = Site::new();
    site.open();
    for (file, text) in [
        ("hosts.json", r#"{"lab@src-1": {"primary_ip": 7}}"#),
        ("host_leases.json", r#"{"lab@src-1": []}"#),
        ("neighbor_leases.json", r#"{"lab.r1|eth1": {}}"#),
        (
            "dscp_registry.json",
            r#"{"allocations": {"old": {"dscp": 99}}}"#,
        ),
    ] {
        fs::write(site.registry_dir().join(file), text).unwrap();
    }
    let kernel = || site.kernel().leaving_taps();
    let info = info("a");
    let mut holding = Holding::new(site.open(), info.run_id, JobType::Quick, None);
    let (spec, routers) = (spec(1), [router("r1")]);
    let mut notes = Vec::new();
    let begun = holding.begin(
        (&[&spec], &routers),
        &mut kernel(),
        (&mut kernel(), &mut notes),
        &patience(),
    );
    let (locked, _) = begun.unwrap();
    let failed = holding.end(locked, &mut kernel(), &patience(), true);
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(notes, [""; 0]);
    site.assert_empty("after the job");
}
