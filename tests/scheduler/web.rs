//! The viewer and API against their own description, and against misuse.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
};

use serde_json::{Value, json};

use tsim::{sched::job::Mode, sys::limits};

use crate::{
    http::{Client, Event, read_answer},
    support::{Daemon, Site, id},
};

const TOKEN: &str = "5f0e1c2d3b4a59687786f5e4d3c2b1a0";

/// A site with a token, and its daemon.
fn serve(scheduler: &str) -> (Site, Daemon) {
    let site = Site::with(|root| {
        let token = root.join("token");
        fs::write(&token, TOKEN).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        format!("token_file = \"{}\"\n{scheduler}", token.display())
    });
    let daemon = site.daemon();
    (site, daemon)
}

fn client(daemon: &Daemon) -> Client<'static> {
    Client {
        address: daemon.address(),
        token: Some(TOKEN),
    }
}

fn submission(run_id: &str, lab: &str) -> Value {
    json!({"mode": "quick", "lab": lab, "source": "10.0.0.1", "destination": "10.0.0.2",
        "ports": "80,81", "run_id": run_id, "username": "<script>alert(1)</script>"})
}

/// The server's own description, and answers held against it.
struct Description(Value);

impl Description {
    fn check(&self, method: &str, path: &str, answer: &crate::http::Answer) {
        let described = &self.0["paths"][path][method]["responses"];
        let described = &described[answer.status.to_string()];
        assert!(
            !described.is_null(),
            "{method} {path}: {} is not described: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        let described = match described["$ref"].as_str() {
            Some(reference) => self.0.pointer(&reference[1..]).unwrap(),
            None => described,
        };
        let kind = answer.header("content-type").unwrap();
        let kind = kind.split(';').next().unwrap();
        let content = &described["content"][kind];
        assert!(
            !content.is_null(),
            "{method} {path}: {kind} is not described"
        );
        if kind == "application/json" {
            self.check_value(&content["schema"], &answer.json(), path);
        }
    }

    fn check_value(&self, schema: &Value, value: &Value, what: &str) {
        let mut schema = schema.clone();
        if let Some(fields) = schema.as_object_mut() {
            fields.insert("components".to_owned(), self.0["components"].clone());
        }
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&schema)
            .unwrap();
        let errors: Vec<String> = validator
            .iter_errors(value)
            .map(|e| format!("{e} at {}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{what}: {errors:?}\n{value:#}");
    }
}

/// What a rule says that the fake runner finds an answer to.
const POLICY: &str = "version = 1\n[[rule]]\nname = \"the office reaches the web\"\n\
    from = \"10.1.1.1\"\nto = \"10.2.1.2\"\nservices = \"443\"\nmust = \"pass\"\n";

fn check(run_id: &str, policy: &str) -> Value {
    json!({"mode": "check", "lab": "any", "username": "ann", "run_id": run_id,
        "policy": {"name": "policy.toml", "files": {"policy.toml": policy}}})
}

#[test]
fn a_policy_travels_as_its_text_and_nothing_that_it_names_is_read() {
    let (site, daemon) = serve("");
    let client = client(&daemon);
    let secret = site.path("secret.toml");
    fs::write(&secret, "version = 1\n[addresses]\nsecret = \"10.9.9.9\"\n").unwrap();
    let include = format!("include = [{secret:?}]\n{POLICY}");
    let list = POLICY.replace("\"443\"", &format!("\"@{}\"", secret.display()));
    let source = json!({"source": "10.1.1.1"});
    let bare = json!({"policy": null});
    let merged = |more: &Value| {
        let mut job = check("bad", POLICY);
        let more = more.as_object().unwrap().clone();
        job.as_object_mut().unwrap().extend(more);
        job
    };
    for (job, field, want) in [
        (
            check("bad", &include),
            "policy",
            "not among those of the policy",
        ),
        (
            check("bad", &list),
            "policy",
            "neither a service group nor a file",
        ),
        (check("bad", "version = 1\n"), "policy", "no rule says"),
        (merged(&source), "source", "a check job has no source"),
        (merged(&bare), "policy", "policy is missing"),
        (
            merged(&json!({"timeout": 2.0})),
            "timeout",
            "a check job has no timeout",
        ),
        (
            merged(&json!({"mode": "quick"})),
            "source",
            "source is missing",
        ),
    ] {
        let refused = client.post("/api/v1/jobs", &job);
        let answer = refused.json();
        assert_eq!(
            (refused.status, answer["field"].as_str()),
            (400, Some(field)),
            "{answer}"
        );
        assert!(answer["error"].as_str().unwrap().contains(want), "{answer}");
    }
    // The same job again is one job, another policy under its name another.
    for (policy, status) in [
        (POLICY.to_owned(), 201),
        (POLICY.to_owned(), 200),
        (POLICY.replace("443", "80"), 409),
    ] {
        let answer = client.post("/api/v1/jobs", &check("c1", &policy));
        assert_eq!(answer.status, status, "{}", answer.json());
    }
    site.until_finished("c1");
    let listed = client.get("/api/v1/policies").json();
    let held = &listed["policies"][0];
    assert_eq!(
        (&held["lab"], &held["policy"]["rules"]),
        (&json!("any"), &json!(1))
    );
    assert_eq!(
        held["runs"][0]["verdicts"],
        json!({"yes": 1, "no": 1, "unknown": 0})
    );
}

#[test]
fn every_described_operation_answers_as_described() {
    let (site, daemon) = serve("quick_jobs = 1");
    let client = client(&daemon);
    let document = Description(client.get("/api/v1/openapi.json").json());
    // Descriptions are doc comments, and the links of those lead nowhere here.
    assert!(!document.0.to_string().contains("[`"));

    let created = client.post("/api/v1/jobs", &submission("r1", "any"));
    document.check("post", "/api/v1/jobs", &created);
    assert_eq!(created.status, 201);
    assert_eq!(created.header("location"), Some("/api/v1/jobs/r1"));
    site.until_finished("r1");
    let again = client.post("/api/v1/jobs", &submission("r1", "any"));
    document.check("post", "/api/v1/jobs", &again);
    assert_eq!(again.status, 200);
    for (body, status) in [
        (submission("r1", "other"), 409),
        (json!({"mode": "quick"}), 400),
        (json!({"mode": "quick", "run_id": "../x"}), 400),
        (submission("r2", "nolab"), 400),
    ] {
        let answer = client.post("/api/v1/jobs", &body);
        document.check("post", "/api/v1/jobs", &answer);
        assert_eq!(answer.status, status, "{body}");
    }
    site.submit("detailed", Mode::Detailed, "any");
    site.until_finished("detailed");
    let report = client.get("/api/v1/jobs/detailed/report");
    document.check("get", "/api/v1/jobs/{run_id}/report", &report);
    assert_eq!(report.status, 200);
    let kept = report.header("content-disposition");
    assert_eq!(kept, Some("attachment; filename=\"detailed.html\""));
    for run_id in ["before", "r3"] {
        let checked = client.post("/api/v1/jobs", &check(run_id, POLICY));
        document.check("post", "/api/v1/jobs", &checked);
        assert_eq!(checked.status, 201, "{}", checked.json());
        site.until_finished(run_id);
    }
    for part in ["document", "table", "since/before"] {
        let answer = client.get(&format!("/api/v1/jobs/r3/{part}"));
        let path = format!(
            "/api/v1/jobs/{{run_id}}/{}",
            part.replace("before", "{before}")
        );
        document.check("get", &path, &answer);
        assert_eq!(answer.status, 200, "{part}");
    }
    client.post("/api/v1/jobs", &submission("running", "gate"));
    site.until("it runs", |site| site.started().len() == 5);
    client.post("/api/v1/jobs", &submission("waiting", "gate"));
    site.until("it waits", |site| site.jobs().queued.len() == 1);

    let paths = document.0["paths"].as_object().unwrap().clone();
    for (path, methods) in &paths {
        if methods.get("get").is_none() || path == "/api/v1/events" {
            continue;
        }
        for run_id in ["r1", "running", "waiting", "nobody", "..%2fx"] {
            if path.ends_with("/watch") && ["running", "waiting"].contains(&run_id) {
                // It would be told until it is over.
                continue;
            }
            let url = path
                .replace("{run_id}", run_id)
                .replace("{before}", "before");
            let url = url.replace("{lab}", run_id);
            document.check("get", path, &client.get(&url));
        }
        let stranger = client.ask("GET", path, &[("host", "evil.example")], "");
        document.check("get", path, &stranger);
    }
    let state = client.get("/api/v1/state").json();
    assert_eq!(state["running"][0]["run_id"], "running");
    assert_eq!(state["queue"]["first"][0]["run_id"], "waiting");
    for path in ["/api/v1/history?limit=0x", "/api/v1/queue?nonsense=1"] {
        let answer = client.get(path);
        document.check("get", path.split('?').next().unwrap(), &answer);
        assert_eq!(answer.status, 400);
    }

    let by = json!({"username": "bob"});
    for (run_id, status) in [
        ("waiting", 200),
        ("running", 202),
        ("r1", 409),
        ("nobody", 404),
    ] {
        let answer = client.post(&format!("/api/v1/jobs/{run_id}/cancel"), &by);
        document.check("post", "/api/v1/jobs/{run_id}/cancel", &answer);
        assert_eq!(answer.status, status, "{run_id}");
    }
}

#[test]
fn options_reach_the_runner_and_a_bad_one_is_said_at_its_field() {
    let (site, daemon) = serve("");
    let client = client(&daemon);
    let document = Description(client.get("/api/v1/openapi.json").json());
    let trace = json!({"lab": "args", "source": "10.0.0.1", "destination": "10.0.0.2",
        "hops": [], "end": {"kind": "no_route"}});
    let with = |fields: &Value| {
        let mut job = submission("told", "args");
        let told = fields.as_object().unwrap().clone();
        job.as_object_mut().unwrap().extend(told);
        job
    };
    let told = json!({"trust_facts": true, "default_proto": "udp", "sport": 4000,
        "lock_timeout": 2.5, "explain": "never", "backend": "nft", "probe_dscp": 46,
        "trace": trace});
    for (fields, field) in [
        (json!({"from": "a/b"}), Some("from")),
        (json!({"from": "no-such-router"}), Some("from")),
        (json!({"routers": ["nobody"]}), Some("routers")),
        (json!({"trust_facts": "yes"}), Some("trust_facts")),
        (json!({"sport": 0}), Some("sport")),
        (json!({"sport": 65536}), Some("sport")),
        (json!({"timeout": 1}), Some("timeout")),
        (
            json!({"mode": "detailed", "explain": "auto"}),
            Some("explain"),
        ),
        (json!({"ports": "0"}), Some("ports")),
        (json!({"backend": "pf"}), Some("backend")),
        (json!({"probe_dscp": 64}), Some("probe_dscp")),
        (json!({"trace": "/etc/passwd"}), Some("trace")),
        (
            json!({"trace": trace, "ports": "80", "routers": []}),
            Some("routers"),
        ),
        (
            json!({"trace": trace, "destination": "10.0.0.3"}),
            Some("trace"),
        ),
        (json!({"destination": "10.0.0.1"}), Some("destination")),
        (json!({"lab": "nolab"}), Some("lab")),
        (json!({"colour": "red"}), None),
    ] {
        let answer = client.post("/api/v1/jobs", &with(&fields));
        document.check("post", "/api/v1/jobs", &answer);
        assert_eq!(answer.status, 400, "{fields}");
        let refused = answer.json();
        assert_eq!(refused["field"].as_str(), field, "{fields}: {refused}");
    }
    // Every field that is described is read.
    let described = &document.0["components"]["schemas"]["Submission"]["properties"];
    for field in described.as_object().unwrap().keys() {
        let refused = client
            .post("/api/v1/jobs", &with(&json!({field: [[]]})))
            .json();
        assert_eq!(refused["field"].as_str(), Some(&**field), "{refused}");
    }
    let answer = client.post("/api/v1/jobs", &with(&told));
    assert_eq!(answer.status, 201, "{}", answer.json());
    site.until_finished("told");
    let arguments = fs::read_to_string(site.path("args")).unwrap();
    for argument in [
        "--trust-facts",
        "--default-proto=udp",
        "--sport=4000",
        "--lock-timeout=2.5",
        "--explain=never",
        "--backend=nft",
        "--probe-dscp=46",
    ] {
        assert!(arguments.contains(argument), "{argument}: {arguments}");
    }
    let file = arguments.split("--trace=").nth(1).unwrap();
    let file = file.split_whitespace().next().unwrap();
    let run = site.spool.run_dir(&id("told"));
    let file = fs::read_to_string(run.join(file)).unwrap();
    let given: Value = serde_json::from_str(&file).unwrap();
    assert_eq!(given["destination"], "10.0.0.2");
    let job = client.get("/api/v1/jobs/told");
    document.check("get", "/api/v1/jobs/{run_id}", &job);
    assert_eq!(job.json()["params"]["probe_dscp"], 46);
}

#[test]
fn the_stream_tells_a_jobs_whole_life_as_described() {
    let (site, daemon) = serve("");
    let client = client(&daemon);
    let document = Description(client.get("/api/v1/openapi.json").json());
    let schema = |name: &str| document.0["components"]["schemas"][name].clone();
    let mut stream = client.events(None);
    let first = stream.next();
    assert_eq!(first.name, "snapshot");
    document.check_value(&schema("Snapshot"), &first.data, "snapshot");
    client.post("/api/v1/jobs", &submission("r1", "gate"));
    let started = stream.until(|event| has(event, "running", "r1"));
    let _gate = site.open_gate();
    let ended = stream.until(|event| has(event, "ended", "r1"));
    for event in started.iter().chain(&ended) {
        assert_eq!(event.name, "update");
        document.check_value(&schema("Update"), &event.data, "update");
    }
    let end = &ended.last().unwrap().data["ended"][0];
    assert_eq!(end["verdicts"], json!({"yes": 1, "no": 1, "unknown": 0}));
    assert_eq!(end["username"], "<script>alert(1)</script>");

    // Who comes back is told exactly what was missed.
    let mut back = client.events(Some(&first.id));
    let missed = back.until(|event| has(event, "ended", "r1"));
    let ids = |events: &[Event]| -> Vec<String> { events.iter().map(|e| e.id.clone()).collect() };
    assert_eq!(ids(&missed), [ids(&started), ids(&ended)].concat());
    // Who saw another scheduler, or talks nonsense, starts over.
    for id in ["1.1", "x", "999999999999999999999.1", ""] {
        assert_eq!(client.events(Some(id)).next().name, "snapshot", "{id}");
    }
}

fn has(event: &Event, list: &str, run_id: &str) -> bool {
    let jobs = event.data[list].as_array();
    jobs.is_some_and(|jobs| jobs.iter().any(|job| job["run_id"] == run_id))
}

#[test]
fn strangers_change_nothing() {
    let (site, daemon) = serve("");
    let right = client(&daemon);
    let nobody = Client {
        token: None,
        ..right
    };
    let wrong = Client {
        token: Some("5f0e1c2d3b4a59687786f5e4d3c2b1a1"),
        ..right
    };
    let job = submission("x", "any");
    assert_eq!(nobody.post("/api/v1/jobs", &job).status, 401);
    assert_eq!(wrong.post("/api/v1/jobs", &job).status, 401);
    let json = ("content-type", "application/json");
    for header in [
        ("origin", "http://evil.example"),
        ("sec-fetch-site", "cross-site"),
        ("host", "evil.example"),
    ] {
        let answer = right.ask("POST", "/api/v1/jobs", &[json, header], &job.to_string());
        assert!(
            [403, 421].contains(&answer.status),
            "{header:?}: {}",
            answer.status
        );
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let headers = [("content-type", kind)];
        let answer = right.ask("POST", "/api/v1/jobs", &headers, &job.to_string());
        assert_eq!(answer.status, 415, "{kind}");
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        let answer = right.ask(method, "/api/v1/jobs", &[], "");
        assert_eq!(answer.status, 405, "{method}");
        assert!(answer.header("access-control-allow-origin").is_none());
    }
    assert!(site.jobs().queued.is_empty() && site.started().is_empty());
}

#[test]
fn names_never_leave_their_directory() {
    let (site, daemon) = serve("");
    let client = client(&daemon);
    fs::write(site.path("secret"), "hidden").unwrap();
    for path in [
        "/api/v1/jobs/..%2f..%2fsecret/result",
        "/api/v1/jobs/%2e%2e/result",
        "/api/v1/jobs/../../secret/result",
        "/api/v1/jobs/..%00/result",
        "/api/v1/jobs/-x/result",
        "/assets/..%2f..%2f..%2fsecret",
        "/assets/../mod.rs",
        "/assets//etc/passwd",
        "/api/v1/labs/..%2f..%2fsecret",
    ] {
        let answer = client.get(path);
        assert!(
            [400, 404].contains(&answer.status),
            "{path}: {}",
            answer.status
        );
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains("hidden"), "{path}");
    }
}

#[test]
fn bodies_and_heads_are_limited() {
    let (site, daemon) = serve("");
    let client = client(&daemon);
    let headers = [("content-type", "application/json")];
    let body = format!("{{\"ports\":\"{}\"}}", "1,".repeat(5 << 20));
    assert_eq!(
        client.ask("POST", "/api/v1/jobs", &headers, &body).status,
        413
    );
    let deep = "[".repeat(60_000);
    assert_eq!(
        client.ask("POST", "/api/v1/jobs", &headers, &deep).status,
        400
    );
    let long = format!("/api/v1/jobs/{}", "x".repeat(100_000));
    assert!([414, 431].contains(&client.get(&long).status));
    let mut stream = client.connect();
    let head = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "y".repeat(100_000)
    );
    let _ = stream.write_all(head.as_bytes());
    assert_eq!(read_answer(stream).status, 431);
    assert!(site.jobs().queued.is_empty());
}

#[test]
fn pages_carry_their_protection_and_no_inline_code() {
    let (_site, daemon) = serve("");
    let client = client(&daemon);
    let mut linked = BTreeSet::new();
    for path in ["/", "/job/x", "/lab", "/lab/corp10"] {
        let page = client.get(path);
        assert_eq!(page.status, 200, "{path}");
        let csp = page.header("content-security-policy").unwrap();
        assert!(
            csp.contains("default-src 'none'") && !csp.contains("unsafe"),
            "{csp}"
        );
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        let text = String::from_utf8(page.body).unwrap();
        for inline in ["<script>", "<style", " style=", " onclick=", "javascript:"] {
            assert!(!text.contains(inline), "{path}: {inline}");
        }
        let quoted = text.split('"').filter(|part| part.starts_with("/assets/"));
        linked.extend(quoted.map(str::to_owned));
    }
    for asset in linked {
        let answer = client.get(&asset);
        assert_eq!(answer.status, 200, "{asset}");
        let text = String::from_utf8(answer.body).unwrap();
        assert!(
            !text.contains("innerHTML") && !text.contains("eval("),
            "{asset}"
        );
    }
}

#[test]
fn what_is_not_there_is_a_page_for_people_and_json_for_programs() {
    let (_site, daemon) = serve("");
    let client = client(&daemon);
    let page = client.ask("GET", "/nowhere", &[("accept", "text/html,*/*")], "");
    assert_eq!(page.status, 404);
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    let json = client.get("/nowhere");
    assert_eq!(json.status, 404);
    assert_eq!(json.json()["error"], "there is nothing here");
}

#[test]
fn requests_per_address_are_limited() {
    let (_site, daemon) = serve("requests_per_second = 1");
    let client = client(&daemon);
    let answers: Vec<u16> = (0..70).map(|_| client.get("/healthz").status).collect();
    assert!(answers[..60].iter().all(|status| *status == 200));
    assert!(answers.contains(&429));
}

#[test]
fn slow_heads_are_cut_off_and_hold_nobody_up() {
    limits::open_files().unwrap();
    let (_site, daemon) = serve("max_connections = 200");
    let client = client(&daemon);
    let mut slow: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = client.connect();
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ")
                .unwrap();
            stream
        })
        .collect();
    assert_eq!(client.get("/healthz").status, 200);
    // The server gives up on each of them; this waits until it has.
    for stream in &mut slow {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"));
    }
    assert_eq!(client.get("/healthz").status, 200);
}

#[test]
fn a_thousand_viewers_see_the_same_and_the_rest_is_told_to_wait() {
    limits::open_files().unwrap();
    let (site, daemon) = serve("max_viewers = 1000");
    let client = client(&daemon);
    let mut streams: Vec<_> = (0..1000).map(|_| client.events(None)).collect();
    for stream in &mut streams {
        assert_eq!(stream.next().name, "snapshot");
    }
    assert_eq!(client.events(None).status, 503);
    site.quick("r1", "any");
    for stream in &mut streams {
        stream.until(|event| has(event, "ended", "r1"));
    }
    let text = String::from_utf8(client.get("/metrics").body).unwrap();
    assert!(text.contains("tsim_viewers 1000\n"), "{text}");
    assert!(text.contains("tsim_jobs_ended_total{mode=\"quick\",status=\"done\"} 1\n"));
    drop(streams);
}

#[test]
fn an_unsafe_token_or_address_stops_the_start() {
    let site = Site::with(|root| {
        fs::write(root.join("token"), TOKEN).unwrap();
        fs::set_permissions(root.join("token"), fs::Permissions::from_mode(0o644)).unwrap();
        format!("token_file = \"{}/token\"", root.display())
    });
    let text = site.spawn().failure();
    assert!(text.contains("0644") && text.contains("0600"), "{text}");
}
