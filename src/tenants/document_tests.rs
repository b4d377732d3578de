use std::time::Duration;

use forkvm::{AllowedPath, Config, Debugging, Header, Limits, Queue, WarmUp};

use super::*;
use crate::tenants::entries::expand;
use crate::tenants::keys::Key;

fn tenants(text: &str) -> Vec<Settings> {
    let tenants = parse(text.as_bytes(), &mut Warnings::default()).unwrap();
    tenants.into_iter().map(|tenant| tenant.settings).collect()
}

fn error(text: &str) -> BadDocument {
    parse(text.as_bytes(), &mut Warnings::default()).unwrap_err()
}

#[test]
fn a_tenant_has_its_groups_settings_and_its_own() {
    let tenants = tenants(
        r#"{
            // Those of group "test".
            "b.example": { "filename": "/srv/b" },
            "test": { "concurrency": 3 },
            "large": { /* for two */
                "max_memory": 1024, "max_request_time": 0.5, "main_arguments": ["-v", "two words"],
                "filename_is_not": "/a/tenant's"
            },
            "a.example": { "group": "large", "filename": "/srv/a", "max_request_time": 4 },
            "C.example": { "group": "large", "filename": "/srv/c", "main_arguments": [] }
        }"#,
    );
    let seen: Vec<_> = tenants
        .iter()
        .map(|settings| {
            let config = &settings.config;
            (
                config.name.as_str(),
                config.group.as_str(),
                config.concurrency,
                config.limits.max_memory >> 20,
                config.limits.max_request_time,
                config.main_arguments.len(),
            )
        })
        .collect();
    let ms = Duration::from_millis;
    assert_eq!(
        seen,
        [
            ("b.example", "test", 3, 256, ms(8000), 0),
            ("a.example", "large", 2, 1024, ms(4000), 2),
            ("c.example", "large", 2, 1024, ms(500), 0),
        ]
    );
}

#[test]
fn every_setting_is_taken_over() {
    let [settings] = &tenants(
        r#"{
            "G": {},
            "all": {
                "group": "G", "filename": "/srv/a", "key": "secret", "max_boot_time": 1.5,
                "max_request_time": 2, "max_wait": 0, "idle_time": 3, "max_memory": 4,
                "max_request_memory": 5, "req_mem_limit_after_reset": 6, "concurrency": 255,
                "max_queue": 9, "max_response_size": 10, "max_response_memory": 11,
                "main_arguments": ["a b"], "environment": ["A=b c"], "allowed_paths": ["/etc"],
                "current_working_directory": "/tmp", "stdout": true,
                "warmup": { "url": "/w", "method": "POST", "headers": ["A: b"], "num_requests": 7, "forks": false },
                "state_dir": "/var/lib", "keep_versions": 0, "update_without_state": true, "watch": true,
                "version_header": true, "allow_debug": true, "debug_address": "127.0.0.1:1",
                "debug_timeout": 8, "debug_exceptions": true,
                "storage": "fork", "max_storage_time": 12, "max_state_size": 13, "shared_memory": 14, "ephemeral": false,
                "control_ephemeral": true
            }
        }"#,
    )[..] else {
        panic!()
    };
    let config = Config {
        group: "G".into(),
        main_arguments: vec!["a b".into()],
        environment: vec!["A=b c".into()],
        allowed_paths: vec!["/etc".into()],
        max_file_memory: 5 << 20,
        current_working_directory: "/tmp".into(),
        concurrency: 255,
        queue: Queue::new(9),
        idle_time: Duration::from_secs(3),
        warm_up: Some(WarmUp {
            num_requests: 7,
            url: "/w".into(),
            method: "POST".into(),
            headers: vec![Header::new("A", b"b")],
            forks: false,
        }),
        debugging: Debugging {
            allowed: true,
            address: "127.0.0.1:1".parse().unwrap(),
            timeout: Duration::from_secs(8),
            exceptions: true,
            only: false,
        },
        limits: Limits {
            max_boot_time: Duration::from_millis(1500),
            max_request_time: Duration::from_secs(2),
            max_wait: Duration::ZERO,
            max_memory: 4 << 20,
            max_request_memory: 5 << 20,
            req_mem_limit_after_reset: 6 << 20,
            max_response_size: 10 << 20,
            max_storage_time: Duration::from_secs(12),
            max_state_size: 13 << 20,
        },
        storage: forkvm::StorageKind::Fork,
        ephemeral: false,
        control_ephemeral: true,
        shared_memory: 14 << 20,
        ..Config::new("all")
    };
    assert_eq!(settings.config, config);
    assert_eq!(settings.path, Path::new("/srv/a"));
    assert_eq!(settings.key, Key::given(b"secret"));
    assert_eq!(settings.state_dir, Path::new("/var/lib"));
    let values = &settings.values;
    assert_eq!(values.keep_versions, 0);
    assert_eq!(values.max_response_memory, 11 << 20);
    assert!(values.stdout && values.update_without_state && values.watch && values.version_header);
}

#[test]
fn what_a_tenant_has_itself_replaces_the_groups_whole() {
    let tenants = tenants(
        r#"{
            "g": { "key": "k", "warmup": { "num_requests": 5, "url": "/a", "headers": ["A: b"] } },
            "a": { "group": "g", "filename": "/p" },
            "b": { "group": "g", "filename": "/p", "update_key_file": "/k", "warmup": { "method": "POST" } }
        }"#,
    );
    let [a, b] = &tenants[..] else { panic!() };
    assert_eq!(a.key, Key::given(b"k"));
    assert_eq!(b.key, Key::File("/k".into()));
    let warm_up = a.config.warm_up.as_ref().unwrap();
    assert_eq!((warm_up.num_requests, &*warm_up.url), (5, "/a"));
    let expected = WarmUp {
        method: "POST".into(),
        ..WarmUp::default()
    };
    assert_eq!(b.config.warm_up.as_ref(), Some(&expected));
}

/// A key is in no message, wherever in the document it is by mistake.
#[test]
fn no_message_has_a_key() {
    for text in [
        r#"{ "key": "s3cret", "filename": "/p" }"#,
        r#"["s3cret"]"#,
        r#""s3cret""#,
        r#"{ "a": { "filename": "/p", "key": ["s3cret"] } }"#,
        r#"{ "a": { "filename": "/p", "key": "s3cret", "update_key_file": "/k" } }"#,
        r#"{ "a": { "filename": "/p", "warmup": { "headers": ["Authorization s3cret"] } } }"#,
        r#"{ "a": { "filename": "/p", "warmup": { "headers": "s3cret" } } }"#,
        r#"{ "a": { "filename": "/p", "key": "s3cret" "#,
    ] {
        let error = error(text);
        assert!(
            !format!("{error} {error:?}").contains("s3cret"),
            "{error:?}"
        );
    }
}

#[test]
fn what_means_nothing_is_a_warning() {
    let mut warnings = Warnings::default();
    let document = parse(
        br#"{
            "g": { "hugepages": true, "typo": 1, "max_wait": "1s" },
            "a": {
                "filename": "/p", "start": false,
                /* Not a
                 * setting. */ "comment": [], "max_bot_time": 1,
                "warmup": { "comment": 1, "metod": "POST" }, "wamrup": {}, "update_key": "s3cret"
            }
        }"#,
        &mut warnings,
    );
    assert_eq!(document.unwrap().len(), 1);
    assert_eq!(warnings.unknown, 7);
    assert_eq!(
        warnings.lines,
        [
            "line 2: \"g\": hugepages has no effect: memory has pages of 4 KB, since a reset copies those that were written to",
            "line 2: \"g\": typo is unknown",
            "line 2: \"g\": max_wait must be a number",
            "line 6: \"a\": comment is unknown",
            "line 6: \"a\": max_bot_time is unknown, did you mean max_boot_time?",
            "line 7: \"a\": warmup.comment is unknown",
            "line 7: \"a\": warmup.metod is unknown, did you mean warmup.method?",
            "line 7: \"a\": wamrup is unknown, did you mean warmup?",
            "line 7: \"a\": update_key is unknown, did you mean key?",
        ]
    );
    assert!(parse(b"{}", &mut warnings).unwrap().is_empty());
}

#[test]
fn an_error_says_on_which_line() {
    let of_a = |entry: &str| {
        format!(
            "{{\n\"g\": {{\n\"idle_time\": -1 }},\n\"a\": {{\n \"filename\": \"/p\",\n{entry} }} }}"
        )
    };
    for (text, reason) in [
        (
            &*of_a("\"keep_versions\": -1"),
            "line 6: tenant(\"a\"): keep_versions is -1",
        ),
        (
            &of_a("\"max_wait\":\n1e999"),
            "line 7: max_wait has a value that can't be read: number out of range",
        ),
        (
            &of_a("\"warmup\": {\n\n \"num_requests\": -1 }"),
            "line 6: tenant(\"a\"): warmup.num_requests is -1",
        ),
        (
            &of_a("\"stdout\": true,\n\"stdout\": true"),
            "line 7: \"stdout\" is there twice",
        ),
        (
            &of_a("\"group\": \"g\""),
            "line 3: tenant(\"a\"): idle_time is -1 s",
        ),
        ("{ \"b\": 1,\n \"b\": 2 }", "line 2: \"b\" is there twice"),
        (
            "{\n\n\"a\": { \"group\": \"test\" } }",
            "line 3: tenant(\"a\"): filename is missing",
        ),
        (
            "{\n\"a\": 1 }",
            "line 2: an object of objects must be there",
        ),
    ] {
        let error = error(text).to_string();
        assert!(error.starts_with(reason), "{text}: {error}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let of_a = |entry: &str| format!("{{ \"a\": {{ \"filename\": \"/p\", {entry} }} }}");
    for (text, reason) in [
        ("", "EOF while parsing a value at line 1"),
        ("[]", "line 1: an object of objects must be there"),
        (
            "{\n\"a\": 1 }",
            "line 2: an object of objects must be there",
        ),
        ("{\n\n\"a\" {} }", "expected `:` at line 3"),
        ("{ /* \"a\": {} }", "EOF while parsing an object at line 1"),
        ("{ / \"a\": {} }", "a / that begins no comment"),
        ("{\n/*\n\n*/\n\"a\" {} }", "expected `:` at line 5"),
        ("{ // x\n\"\u{e9}\" {} }", "expected `:` at line 2"),
        (
            r#"{ "a": {"filename": "/p"}, "a": {"filename": "/q"} }"#,
            "\"a\" is there twice",
        ),
        (
            &of_a(r#""stdout": true, "stdout": false"#),
            "\"stdout\" is there twice",
        ),
        (
            r#"{ "a b": {"filename": "/p"} }"#,
            r#"tenant("a b"): name must be"#,
        ),
        (
            r#"{ "a": {"group": "test"} }"#,
            r#"tenant("a"): filename is missing"#,
        ),
        (
            r#"{ "a": {"filename": "p"} }"#,
            r#"tenant("a"): filename is not absolute"#,
        ),
        (
            r#"{ "g": {"max_wait": "1s"}, "a": {"group": "g", "filename": "/p"} }"#,
            r#"tenant("a"): max_wait must be a number"#,
        ),
        (&of_a(r#""group": 1"#), "group must be a string"),
        (&of_a(r#""key": null"#), "key must be a string"),
        (&of_a(r#""key": "\u0000""#), "key has a NUL in it"),
        (
            &of_a(r#""concurrency": 1.5"#),
            "concurrency must be a whole number",
        ),
        (
            &of_a(r#""max_memory": "1GB""#),
            "max_memory must be a whole number of megabytes",
        ),
        (
            &of_a(r#""max_memory": 9007199254740992"#),
            "max_memory is 9007199254740992 megabytes, which is too much",
        ),
        (&of_a(r#""max_memory": -1"#), "max_memory is -1048576 bytes"),
        (&of_a(r#""max_wait": true"#), "max_wait must be a number"),
        (&of_a(r#""stdout": 1"#), "stdout must be true or false"),
        (
            &of_a(r#""main_arguments": "-v""#),
            "main_arguments must be an array of strings",
        ),
        (
            &of_a(r#""environment": ["A=b", 1]"#),
            "environment has an entry that must be a string",
        ),
        (&of_a(r#""warmup": 3"#), "warmup must be an object"),
        (
            &of_a(r#""warmup": {"url": 3}"#),
            "warmup has url, which must be a string",
        ),
        (
            &of_a(r#""warmup": {"headers": ["A"]}"#),
            "warmup.headers has as number 1: no colon in it",
        ),
    ] {
        let error = error(text).to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn storage_is_a_machine_or_a_fork() {
    use forkvm::StorageKind::{Fork, Machine, None};
    for (value, kind) in [("false", None), ("true", Machine), (r#""fork""#, Fork)] {
        let text = format!(
            r#"{{ "a": {{ "filename": "/p", "storage": {value}, "max_storage_time": 2.5 }} }}"#
        );
        let [tenant] = &tenants(&text)[..] else {
            panic!("{text}");
        };
        assert_eq!(tenant.config.storage, kind);
        let time = std::time::Duration::from_millis(2500);
        assert_eq!(tenant.config.limits.max_storage_time, time);
    }
}

/// What a program relies on, and does not get, is its tenant's failure; the others are there.
#[test]
fn what_is_not_there_fails_its_tenant_alone() {
    const NO_REMAPPING: &str = "remapping asks for memory at addresses of its own, which programs with handlers have not: link it as \
         static-PIE, or run it as an unmodified server (\"server\": true)";
    for (entry, fault) in [
        (r#""group": "g""#, r#"group is "g", which is not there"#),
        (r#""concurrency": 0"#, "concurrency is 0, must be 1 to 255"),
        (
            r#""concurrency": 256"#,
            "concurrency is 256, must be 1 to 255",
        ),
        (r#""remapping": ["0x1000"]"#, NO_REMAPPING),
        (r#""group": "needs""#, NO_REMAPPING),
    ] {
        let text = format!(
            r#"{{ "needs": {{ "remapping": [1] }}, "a": {{ "filename": "/p", {entry} }}, "b": {{ "filename": "/p" }} }}"#
        );
        let tenants = tenants(&text);
        let faults: Vec<_> = tenants
            .iter()
            .map(|tenant| tenant.fault.as_deref())
            .collect();
        assert_eq!(faults, [Some(fault), None], "{entry}");
    }
    let [a, b] = &tenants(
        r#"{ "a": { "filename": "/p", "server": true, "allow_net": ["*"] },
             "b": { "filename": "/p", "server": { "port": 80 } } }"#,
    )[..] else {
        panic!()
    };
    assert!(a.server && a.fault.is_none() && a.values.allow_net.len() == 1);
    assert!(!b.server && b.fault.is_some());
    // What only says that it does without is fine.
    let [a] = &tenants(
        r#"{ "a": { "filename": "/p", "executable_heap": false, "remapping": {}, "server": null,
                    "remote_debug_on_exception": true, "allowed_paths": [{"real": "/a", "writable": false}] } }"#,
    )[..] else {
        panic!()
    };
    assert_eq!(a.fault, None);
    assert!(a.config.debugging.exceptions);
}

#[test]
fn allowed_paths_may_say_more() {
    let [tenant] = &tenants(
        r#"{ "a": { "filename": "/p", "allowed_paths": [
            "/a", {"real": "/b", "virtual": "/c", "symlink": true}, {"prefix": "/d/"},
            {"real": "/e", "prefix": false}, {"virtual": "/f"}
        ] } }"#,
    )[..] else {
        panic!()
    };
    let path = |real: &str, seen: &str, beneath, link| AllowedPath {
        real: real.into(),
        seen: seen.into(),
        beneath,
        link,
        writes: false,
    };
    let expected = [
        path("/a", "/a", true, false),
        path("/b", "/c", true, true),
        path("/d/", "/d/", true, false),
        path("/e", "/e", false, false),
        path("/f", "/f", true, false),
    ];
    assert_eq!(tenant.config.allowed_paths, expected);
    assert!(tenant.config.writable_paths.is_empty());
    let [tenant] = &tenants(
        r#"{ "a": { "filename": "/p", "allowed_paths": [
            { "real": "/a", "virtual": "/b", "writable": true }, { "real": "/c", "writable": true, "persistent": true } ] } }"#,
    )[..] else {
        panic!()
    };
    let writes = |path: &AllowedPath| path.writes;
    let lasting: Vec<_> = tenant.config.allowed_paths.iter().map(writes).collect();
    assert_eq!(lasting, [false, true]);
    assert_eq!(tenant.config.writable_paths, [Path::new("/b")]);
    for (entry, problem) in [
        ("1", "has an entry that must be a string"),
        ("{}", "has an object without real, virtual or prefix"),
        (
            r#"{"real": 1}"#,
            "has an object with real, which must be a string",
        ),
        (
            r#"{"real": "/a", "rael": "/a"}"#,
            "has an object with rael, which is unknown",
        ),
        (
            r#"{"real": "/a", "symlink": 1}"#,
            "has an object with symlink, which must be true or false",
        ),
        (
            r#"{"real": "/a", "persistent": true}"#,
            "has an object with persistent, which is nothing without writable",
        ),
        (
            r#"{"real": "/a", "virtual": "b"}"#,
            r#"has a path that is not absolute: "b""#,
        ),
    ] {
        let text = format!(r#"{{ "a": {{ "filename": "/p", "allowed_paths": [{entry}] }} }}"#);
        let error = error(&text).to_string();
        assert!(error.contains(problem), "{entry}: {error}");
    }
}

#[test]
fn paths_may_begin_with_a_variable() {
    let variable = |name: &str| (name == "HOME").then(|| "/home/v".to_owned());
    let expanded = |text: &str| {
        let mut value = serde_json::from_str(text).unwrap();
        expand(&mut value, &variable);
        serde_json::to_string(&value).unwrap()
    };
    assert_eq!(expanded(r#""$HOME""#), r#""/home/v""#);
    assert_eq!(
        expanded(r#"["$HOME/a",{"real":"$HOME/b","symlink":true},"/c/$HOME"]"#),
        r#"["/home/v/a",{"real":"/home/v/b","symlink":true},"/c/$HOME"]"#
    );
    // No variable, none of ours, one that is not set.
    for text in [r#""$HOMEA""#, r#""$USER""#, r#""$PWD/a""#] {
        assert_eq!(expanded(text), text);
    }
    let error = error(r#"{ "a": { "filename": "$HOMEA/p" } }"#);
    assert!(
        error.to_string().contains("filename is not absolute"),
        "{error}"
    );
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let text = b"{ \"a\": { \"filename\": \"/p\xe9\" } }";
    let error = parse(text, &mut Warnings::default()).unwrap_err();
    assert!(matches!(error, BadDocument::Json(_)), "{error}");
}

#[test]
fn a_file_is_named_by_an_absolute_path() {
    let error = load(Path::new("tenants.json"), &mut Warnings::default()).unwrap_err();
    assert_eq!(error.to_string(), "is not absolute");
}

#[test]
fn a_library_waits_to_be_asked() {
    let json = br#"{ "g": { "start": true }, "a": { "filename": "/p" }, "b": { "group": "g", "filename": "/p" },
        "c": { "filename": "/p", "start": true } }"#;
    let starts = |tenants: Vec<Described>| -> Vec<bool> {
        let tenants = tenants.into_iter();
        tenants.map(|tenant| tenant.settings.values.start).collect()
    };
    let warnings = &mut Warnings::default();
    assert_eq!(
        starts(read(json, false, warnings).unwrap()),
        [false, true, true]
    );
    assert_eq!(starts(parse(json, warnings).unwrap()), [true; 3]);
    assert!(warnings.lines.is_empty());
}

#[test]
fn a_description_is_configured() {
    let warnings = &mut Warnings::default();
    let json = br#"{ "g": { "max_wait": 2, "concurrency": 3 }, "a": { "group": "g", "filename": "/p", "max_memory": 4 } }"#;
    let tenant = read(json, false, warnings).unwrap().remove(0);
    let change = br#"{ "concurrency": 5, /* its own */ "max_memory": 6 }"#;
    let changed = configured("a", Some(tenant.definition), change, warnings).unwrap();
    let again = configured(
        "a",
        Some(changed.definition),
        br#"{ "start": true }"#,
        warnings,
    )
    .unwrap();
    let settings = again.settings;
    assert_eq!(settings.config.limits.max_wait, Duration::from_secs(2));
    assert_eq!(
        (
            settings.config.concurrency,
            settings.config.limits.max_memory >> 20
        ),
        (5, 6)
    );
    assert!(settings.values.start);
    let new = configured("b", None, br#"{ "filename": "/p", "typo": 1 }"#, warnings).unwrap();
    assert!(!new.settings.values.start);
    assert_eq!(warnings.unknown, 1);
    for bad in [&b"[]"[..], b"1", b"{", b"{ \"concurrency\": \"x\" }"] {
        assert!(configured("b", None, bad, warnings).is_err());
    }
}
