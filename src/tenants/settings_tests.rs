use forkvm::AllowedPath;
use forkvm::Header;

use super::*;
use crate::tenants::kinds::{Allowed, List};

fn given() -> Given<'static> {
    Given {
        path: b"/srv/xpizza",
        main_arguments: List::Words(b"-v 'two words'"),
        environment: List::Words(b"A=1 B="),
        allowed_paths: Allowed::Words(b"/etc/ssl /usr/share/zoneinfo"),
        warmup_headers: List::Words(b"'A: b c' D:e"),
        ..Given::new(b"Xpizza.com")
    }
}

#[test]
fn the_defaults_are_the_engines() {
    let given = Given {
        path: b"/srv/xpizza",
        ..Given::new(b"xpizza.com")
    };
    assert_eq!(
        Settings::check(&given).unwrap().config,
        Config::new("xpizza.com")
    );
}

#[test]
fn the_queue_suits_the_forks_unless_it_is_set() {
    let limit = |concurrency, max_queue| {
        let given = Given {
            concurrency,
            max_queue,
            ..given()
        };
        Settings::check(&given).unwrap().config.queue.limit()
    };
    assert_eq!([limit(1, -1), limit(4, -1), limit(5, -1)], [16, 16, 20]);
    assert_eq!(
        [limit(255, -1), limit(255, 0), limit(1, 100)],
        [1020, 0, 100]
    );
}

#[test]
fn lists_are_split() {
    let config = Settings::check(&given()).unwrap().config;
    assert_eq!(config.main_arguments, ["-v", "two words"]);
    assert_eq!(config.environment, ["A=1", "B="]);
    assert_eq!(
        config.allowed_paths,
        ["/etc/ssl", "/usr/share/zoneinfo"].map(AllowedPath::from)
    );
    let warm_up = Settings::check(&Given {
        warmup: 1,
        ..given()
    });
    let headers = warm_up.unwrap().config.warm_up.unwrap().headers;
    assert_eq!(headers, [Header::new("A", b"b c"), Header::new("D", b"e")]);
}

#[test]
fn updates_are_stored_beside_the_program_or_where_it_is_said() {
    let settings = Settings::check(&given()).unwrap();
    assert_eq!(settings.state_dir, Path::new("/srv"));
    assert!(!settings.key.is_set());
    let settings = Settings::check(&Given {
        state_dir: b"/var/lib/kvm",
        update_key: b"secret",
        ..given()
    });
    let settings = settings.unwrap();
    assert_eq!(settings.state_dir, Path::new("/var/lib/kvm"));
    assert!(settings.key.is_set());
    assert!(!format!("{settings:?}").contains("secret"));
}

#[test]
fn bad_settings_name_tenant_and_setting() {
    type Spoil = fn(&mut Given<'static>);
    let spoils: [(&str, Spoil); 75] = [
        ("name", |g| g.name = b""),
        ("name", |g| g.name = b"a b"),
        ("name", |g| g.name = &[b'a'; 247]),
        ("path", |g| g.path = b""),
        ("path", |g| g.path = b"srv/xpizza"),
        ("path", |g| g.path = b"\xff"),
        ("group", |g| g.group = b"\xff"),
        ("max_boot_time", |g| g.max_boot_time = 0.0),
        ("max_boot_time", |g| g.max_boot_time = -1.0),
        ("max_request_time", |g| g.max_request_time = f64::NAN),
        ("max_request_time", |g| g.max_request_time = 1e300),
        ("max_wait", |g| g.max_wait = -0.1),
        ("idle_time", |g| g.idle_time = f64::INFINITY),
        ("max_memory", |g| g.max_memory = -1),
        ("max_memory", |g| g.max_memory = 0),
        ("max_memory", |g| g.max_memory = i64::MAX),
        ("max_request_memory", |g| g.max_request_memory = 1),
        ("req_mem_limit_after_reset", |g| {
            g.req_mem_limit_after_reset = -1
        }),
        ("warmup", |g| g.warmup = -1),
        ("warmup", |g| g.warmup = 10_001),
        ("concurrency", |g| g.concurrency = 0),
        ("concurrency", |g| g.concurrency = 256),
        ("concurrency", |g| g.concurrency = -1),
        ("max_queue", |g| g.max_queue = -2),
        ("max_queue", |g| g.max_queue = 10_001),
        ("max_response_size", |g| g.max_response_size = -1),
        ("max_response_memory", |g| {
            g.max_response_memory = g.max_response_size - 1
        }),
        ("main_arguments", |g| g.main_arguments = List::Words(b"'")),
        ("environment", |g| g.environment = List::Words(b"=x")),
        ("allowed_paths", |g| {
            g.allowed_paths = Allowed::Words(b"etc")
        }),
        ("current_working_directory", |g| {
            g.current_working_directory = b""
        }),
        ("keep_versions", |g| g.keep_versions = -1),
        ("keep_versions", |g| g.keep_versions = 101),
        ("state_dir", |g| g.state_dir = b"var"),
        ("update_key_file", |g| g.update_key_file = b"key"),
        ("debug_address", |g| g.debug_address = b""),
        ("debug_address", |g| g.debug_address = b"0.0.0.0:1234"),
        ("debug_address", |g| g.debug_address = b"192.0.2.1:1234"),
        ("debug_address", |g| g.debug_address = b"gdb.socket"),
        ("debug_timeout", |g| g.debug_timeout = 0.0),
        ("debug_timeout", |g| g.debug_timeout = 3601.0),
        ("warmup_headers", |g| {
            (g.warmup, g.warmup_headers) = (1, List::Words(b"none"));
        }),
        // Of servers only, and what servers have not.
        ("folder", |g| g.folder = b"/app"),
        ("allow_net", |g| g.allow_net = List::Words(b"10.0.0.0/33")),
        ("max_fetch_size", |g| g.max_fetch_size = 1 << 32),
        ("max_fetches", |g| g.max_fetches = -1),
        ("max_fetch_time", |g| g.max_fetch_time = 0.0),
        ("fetch_ca_file", |g| g.fetch_ca_file = b"ca.pem"),
        ("allow_listen", |g| g.allow_listen = List::Words(b"80")),
        ("drop_connections", |g| g.drop_connections = true),
        ("snapshot", |g| g.snapshot = b"/s"),
        ("snapshot", |g| (g.server, g.snapshot) = (true, b"s")),
        ("keep_snapshot", |g| g.keep_snapshot = true),
        ("warmup_time", |g| g.warmup_time = 1.0),
        ("allow_debug", |g| (g.server, g.allow_debug) = (true, true)),
        ("ephemeral", |g| (g.server, g.ephemeral) = (true, false)),
        ("control_ephemeral", |g| {
            (g.server, g.control_ephemeral) = (true, true)
        }),
        ("shared_memory", |g| (g.server, g.shared_memory) = (true, 1)),
        ("shared_memory", |g| g.shared_memory = -1),
        ("shared_memory", |g| g.shared_memory = (1 << 30) + 1),
        ("executable_heap", |g| {
            (g.server, g.executable_heap) = (true, true)
        }),
        ("folder", |g| (g.server, g.folder) = (true, b"app")),
        ("folder", |g| (g.server, g.folder) = (true, b"/")),
        ("folder", |g| (g.server, g.folder) = (true, b"/a/../..")),
        ("writable_paths", |g| {
            (g.server, g.writable_paths) = (true, List::Words(b"run"));
        }),
        ("volumes", |g| {
            (g.server, g.volumes) = (true, List::Words(b"/a:b"));
        }),
        ("volumes", |g| {
            (g.server, g.volumes) = (true, List::Words(b"/a:/b:w"));
        }),
        ("volumes", |g| {
            (g.server, g.volumes) = (true, List::Words(b"a:/b"));
        }),
        ("allow_listen", |g| {
            (g.server, g.allow_listen) = (true, List::Words(b"x"));
        }),
        ("uri", |g| g.uri = b"ftp://h/p"),
        ("uri", |g| g.uri = b"file://relative"),
        ("sha256", |g| g.sha256 = b"ba78"),
        ("md5", |g| g.md5 = b"00112233445566778899aabbccddeef+"),
        ("cold_start_file", |g| {
            (g.uri, g.cold_start_file) = (b"http://h/p", b"/kept");
        }),
        ("update_key", |g| {
            (g.update_key, g.update_key_file) = (b"a", b"/key");
        }),
    ];
    for (setting, spoil) in spoils {
        let mut given = given();
        spoil(&mut given);
        let error = Settings::check(&given).unwrap_err().to_string();
        assert!(error.contains(&format!("): {setting} ")), "{error}");
        assert!(
            error.contains(&given.name.escape_ascii().to_string()),
            "{error}"
        );
    }
}

#[test]
fn what_is_fetched_has_a_place() {
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let checked = |given: Given<'_>| Settings::check(&given).unwrap();
    let fetched = Given {
        uri: b"HTTPS://h/p",
        sha256: digest.as_bytes(),
        ..Given::new(b"a.b")
    };
    let nowhere = checked(fetched.clone());
    assert_eq!(nowhere.source.as_deref(), Some("HTTPS://h/p"));
    assert_eq!(nowhere.values.sha256, digest.parse().ok());
    assert!(!nowhere.is_kept());
    let places: [(Given<'_>, &str); 3] = [
        (
            Given {
                state_dir: b"/state",
                ..fetched.clone()
            },
            "/state/a.b.program",
        ),
        (
            Given {
                cold_start_file: b"/cold",
                ..fetched.clone()
            },
            "/cold",
        ),
        (
            Given {
                path: b"/path",
                ..fetched
            },
            "/path",
        ),
    ];
    for (given, place) in places {
        let settings = checked(given);
        assert!(
            settings.is_kept() && settings.path == Path::new(place),
            "{place}"
        );
    }
    let local = checked(Given {
        uri: b"file:///srv/p",
        ..Given::new(b"a")
    });
    assert_eq!((local.path.to_str(), local.source), (Some("/srv/p"), None));
}

#[test]
fn what_a_program_may_change_it_may_read() {
    let given = Given {
        path: b"/p",
        writable_paths: List::Words(b"/w"),
        volumes: List::Words(b"/h:/over:overlay /r:/last:rw"),
        max_file_memory: 1 << 30,
        ..Given::new(b"a")
    };
    let config = Settings::check(&given).unwrap().config;
    let seen: Vec<_> = config
        .allowed_paths
        .iter()
        .map(|path| (path.seen.to_str(), path.writes))
        .collect();
    let expected = [("/over", false), ("/last", true), ("/w", false)];
    assert_eq!(seen, expected.map(|(path, writes)| (Some(path), writes)));
    assert_eq!(config.writable_paths, [Path::new("/over"), Path::new("/w")]);
    assert_eq!(config.max_file_memory, config.limits.max_request_memory);
}
