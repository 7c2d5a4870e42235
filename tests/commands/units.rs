//! The systemd units that the scheduler prints.

use std::{
    fs,
    process::{Command, Output},
};

const TSIMD: &str = env!("CARGO_BIN_EXE_tsimd");

fn printed(option: &str) -> String {
    let output = Command::new(TSIMD).arg(option).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_with_or_without_the_drop_in() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("tsimd.service");
    let verify = || -> Output {
        let mut verify = Command::new("systemd-analyze");
        verify.arg("verify").arg(&unit).output().unwrap()
    };
    let check = |what: &str| {
        let said = verify();
        // What it does not know it names, and goes on.
        assert!(
            said.status.success() && said.stderr.is_empty(),
            "{what}: {said:?}"
        );
    };
    // It looks for the program, too.
    let text = printed("--print-unit").replace("/usr/bin/tsimd", TSIMD);
    fs::write(&unit, &text).unwrap();
    check("the unit");
    let drop_ins = dir.path().join("tsimd.service.d");
    fs::create_dir(&drop_ins).unwrap();
    fs::write(drop_ins.join("root.conf"), printed("--print-root-drop-in")).unwrap();
    check("with the drop-in");

    // It would say so.
    fs::write(&unit, text.replace("Restart=", "Restrat=")).unwrap();
    assert!(!verify().stderr.is_empty());
}
