//! Requests that must be let in, and all the others.

use std::{fs, os::unix::fs::PermissionsExt};

use axum::body::Body;

use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn guard(listen: &str) -> RequestGuard {
    let config = SchedulerConfig {
        listen: listen.parse().unwrap(),
        host_names: vec!["tsim.Example.org".to_owned()],
        ..SchedulerConfig::default()
    };
    RequestGuard::new(&config, AccessToken(TOKEN.as_bytes().to_vec()))
}

fn remote() -> Peer {
    Peer::Remote {
        address: [127, 0, 0, 1].into(),
        user: None,
    }
}

/// The status that a request is refused with, 200 when it is let in.
fn ask(guard: &RequestGuard, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    guard
        .check(&request, &remote())
        .map_or_else(|e| e.status.as_u16(), |_| 200)
}

const HOST: (&str, &str) = ("host", "localhost:8686");

#[test]
fn changes_need_the_token() {
    let guard = guard("127.0.0.1:8686");
    let post = |headers: &[_]| ask(&guard, "POST", "/api/v1/jobs", &[&[HOST], headers].concat());
    let right = format!("Bearer {TOKEN}");
    assert_eq!(post(&[("authorization", &right)]), 200);
    let longer = format!("{right}0");
    for wrong in [
        "",
        "Bearer ",
        "Bearer 0",
        "Bearer 0123456789abcdef0123456789abcdeg",
        "Basic 0123456789abcdef0123456789abcdef",
        "bearer0123456789abcdef0123456789abcdef",
        &longer,
    ] {
        assert_eq!(post(&[("authorization", wrong)]), 401, "{wrong:?}");
    }
    assert_eq!(post(&[]), 401);
    assert_eq!(ask(&guard, "GET", "/api/v1/state", &[HOST]), 200);
    assert_eq!(ask(&guard, "DELETE", "/api/v1/state", &[HOST]), 401);
}

#[test]
fn a_wrong_token_is_said_where_none_is_needed_too() {
    let guard = guard("127.0.0.1:8686");
    let wrong = [HOST, ("authorization", "Bearer 0")];
    assert_eq!(ask(&guard, "GET", "/api/v1/state", &wrong), 401);
    assert_eq!(ask(&guard, "GET", "/", &wrong), 200);
}

#[test]
fn the_first_start_makes_a_token_that_later_ones_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let first = AccessToken::read_or_make(&path).unwrap();
    assert_eq!(first.text().len(), TOKEN_MIN);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        AccessToken::read_or_make(&path).unwrap().text(),
        first.text()
    );
    let nowhere = AccessToken::read_or_make(&dir.path().join("no/token")).unwrap_err();
    assert!(matches!(nowhere, TokenError::Make { .. }), "{nowhere}");
}

#[test]
fn reading_from_outside_needs_the_token_too() {
    let guard = guard("192.0.2.1:80");
    let host = ("host", "192.0.2.1");
    for path in ["/api/v1/state", "/metrics", "/api/v1/jobs/x/result"] {
        assert_eq!(ask(&guard, "GET", path, &[host]), 401, "{path}");
    }
    for path in ["/", "/assets/app.css", "/healthz", "/api/v1/openapi.json"] {
        assert_eq!(ask(&guard, "GET", path, &[host]), 200, "{path}");
    }
}

#[test]
fn only_our_own_names_are_answered() {
    let guard = guard("127.0.0.1:8686");
    for ours in [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1:8686",
        "[::1]:8686",
        "tsim.example.org",
    ] {
        assert_eq!(ask(&guard, "GET", "/", &[("host", ours)]), 200, "{ours}");
    }
    for foreign in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "localhost:80:80",
        "::1",
        "[::2]",
        "localhost@evil.example",
        "",
    ] {
        assert_eq!(
            ask(&guard, "GET", "/", &[("host", foreign)]),
            421,
            "{foreign:?}"
        );
    }
    assert_eq!(ask(&guard, "GET", "/", &[]), 421);
    assert_eq!(ask(&guard, "GET", "/", &[HOST, HOST]), 421);
    assert_eq!(ask(&guard, "GET", "http://evil.example/", &[HOST]), 421);
}

#[test]
fn pages_of_other_sites_can_ask_nothing() {
    let guard = guard("127.0.0.1:8686");
    let right = format!("Bearer {TOKEN}");
    let post = |name: &str, value: &str| {
        let headers = [HOST, ("authorization", right.as_str()), (name, value)];
        ask(&guard, "POST", "/api/v1/jobs", &headers)
    };
    for (name, value, want) in [
        ("origin", "http://localhost:8686", 200),
        ("origin", "https://localhost:8686", 200),
        ("origin", "http://localhost:1", 403),
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("origin", "", 403),
        ("sec-fetch-site", "same-origin", 200),
        ("sec-fetch-site", "none", 200),
        ("sec-fetch-site", "same-site", 403),
        ("sec-fetch-site", "cross-site", 403),
    ] {
        assert_eq!(post(name, value), want, "{name}: {value}");
    }
    let cross = [HOST, ("sec-fetch-site", "cross-site")];
    assert_eq!(ask(&guard, "GET", "/api/v1/state", &cross), 403);
    // Following a link to a page is no attack.
    assert_eq!(ask(&guard, "GET", "/", &cross), 200);
}

#[test]
fn a_token_file_must_be_secret_and_hold_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let write = |text: &str, mode| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        AccessToken::read(&path)
    };
    assert!(
        write(&format!("{TOKEN}\n"), 0o600)
            .unwrap()
            .is(TOKEN.as_bytes())
    );
    assert!(matches!(write(TOKEN, 0o640), Err(TokenError::Open { .. })));
    for bad in ["", "short", &"x".repeat(257), &format!("{TOKEN}\n{TOKEN}")] {
        assert!(
            matches!(write(bad, 0o600), Err(TokenError::Content(_))),
            "{bad:?}"
        );
    }
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(
        AccessToken::read(&link),
        Err(TokenError::Read { .. })
    ));
}
