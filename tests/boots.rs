//! Programs that boot, or don't, in a real varnishd: they hold up nobody, and their VCLs come and go.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::client::{Body, Client};
use common::varnishd::Varnishd;
use common::{eventually, guests};

#[test]
fn no_bad_program_serves_or_harms_others() {
    if !common::have_kvm() {
        return;
    }
    let mut bad: Vec<String> = fs::read_dir(guests().join("test"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("bad-") && !name.ends_with(".tmp"))
        // This one is ready, and each of its requests fails.
        .filter(|name| name != "bad-no-handler-waits")
        .collect();
    bad.sort();
    assert!(bad.len() > 40, "{bad:?}");
    let mut vcl_init = String::from(r#"kvm.tenant("good", "GUESTS/hello");"#);
    for name in &bad {
        write!(
            vcl_init,
            r#"kvm.tenant("{name}", "GUESTS/test/{name}", max_boot_time = 1s, max_memory = 64MB, max_request_time = ENOUGH);"#
        )
        .unwrap();
    }
    vcl_init += r#"kvm.tenant("last", "GUESTS/hello", max_request_time = ENOUGH);"#;
    let varnish = Varnishd::start(&vcl_init);
    let mut client = varnish.client();
    assert_eq!(client.get("good", "/").text(), "Hello, World!\n");
    for name in &bad {
        assert_eq!(client.get(name, "/").status, 503, "{name}");
        assert_eq!(client.get("good", "/").status, 200, "after {name}");
        let reason = varnish.log(&format!("kvm: tenant {name}: program not ready: "));
        assert!(!reason.is_empty(), "{name}: no reason in the log");
    }
    assert_eq!(client.get("last", "/").text(), "Hello, World!\n");
    assert_eq!(varnish.counter("boots"), 2);
    assert_eq!(varnish.counter("boot_failures"), bad.len() as u64);
    assert_eq!(varnish.counter("requests"), 2 + bad.len() as u64);
}

#[test]
fn programs_that_never_become_ready_hold_up_no_other() {
    if !common::have_kvm() {
        return;
    }
    let mut vcl_init = String::new();
    for n in 0..8 {
        vcl_init += &format!(
            r#"kvm.tenant("spins{n}", "GUESTS/test/bad-main-never-ends", max_boot_time = 1h);"#
        );
    }
    let good = ["hello", "counter", "page", "sqlite"];
    for name in good {
        vcl_init +=
            &format!(r#"kvm.tenant("{name}", "GUESTS/{name}", max_request_time = ENOUGH);"#);
    }
    let varnish = Varnishd::start(&vcl_init);
    for name in good {
        let response = varnish.client().get(name, "/");
        assert_eq!(response.status, 200, "{name}: {}", response.text());
    }
    // All of them while the eight went on.
    assert_eq!(varnish.counter("boots"), good.len() as u64);
    assert_eq!(varnish.counter("boot_failures"), 0);
}

/// A tenant's program may be what never ends; then the next VCL has another one.
#[test]
fn a_reload_mends_a_tenant_whose_program_never_ends() {
    if !common::have_kvm() {
        return;
    }
    for stuck in ["bad-main-never-ends", "bad-main-sleeps"] {
        let tenant = |program: &str| {
            format!(
                r#"kvm.tenant("t", "GUESTS/{program}", max_boot_time = 3600s, max_request_time = ENOUGH);"#
            )
        };
        let varnish = Varnishd::start(&tenant(&format!("test/{stuck}")));
        // Two that nobody gets to see: the latest comes first.
        varnish.reload(&tenant(&format!("test/{stuck}")).replace("3600s", "3599s"));
        varnish.reload(&tenant(&format!("test/{stuck}")).replace("3600s", "3598s"));
        varnish.reload(&tenant("hello"));
        let response = varnish.client().get("t", "/");
        assert_eq!(response.status, 200, "{stuck}: {}", response.text());
        assert_eq!(varnish.counter("boot_failures"), 0);
        // The VCLs before are loaded, so theirs go on; and end with them.
        eventually("another one goes on", || {
            varnish.child().has_thread("kvm-boot")
        });
        for vcl in ["boot", "v0", "v1"] {
            varnish.admin(&["vcl.discard", vcl]);
        }
        eventually("nothing boots for nobody", || {
            !varnish.child().has_thread("kvm-boot")
        });
        assert_eq!(varnish.counter("boots"), 1);
    }
}

/// Has 4 clients ask all the time while `work` runs. Each answer must be one of `good`.
fn under_load(varnish: &Varnishd, host: &str, good: &[&str], work: impl FnOnce()) -> u64 {
    let stop = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client: Client = varnish.client();
                while !stop.load(Ordering::Relaxed) {
                    let response = client.get(host, "/");
                    assert_eq!(response.status, 200);
                    assert!(good.contains(&response.text()), "{}", response.text());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also if `work` fails: the clients would go on for ever.
        let _stop = Stop(&stop);
        work();
    });
    served.into_inner()
}

/// Sets a flag when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn vcls_are_reloaded_and_discarded_while_requests_run() {
    if !common::have_kvm() {
        return;
    }
    // Alternating settings, so that every reload boots a program and every discard frees one.
    let vcl_init = |n: u32| {
        format!(
            r#"kvm.tenant("t", "GUESTS/{}", concurrency = 4, max_wait = ENOUGH, environment = "N={n}");"#,
            if n.is_multiple_of(2) {
                "hello"
            } else {
                "counter"
            }
        )
    };
    let varnish = Varnishd::start(&vcl_init(0));
    let mut descriptors = Vec::new();
    let served = under_load(&varnish, "t", &["Hello, World!\n", "1\n"], || {
        let mut before = "boot".to_owned();
        for n in 1..=8 {
            let name = varnish.reload(&vcl_init(n));
            varnish.admin(&["vcl.discard", &before]);
            before = name;
            thread::sleep(Duration::from_millis(300));
            descriptors.push(varnish.child().kvm_descriptors());
        }
    });
    assert!(served > 100, "{served}");
    // The last discarded VCLs' programs are freed as soon as their last request is done.
    eventually("the discarded VCLs are gone", || {
        varnish
            .admin(&["vcl.list"])
            .lines()
            .filter(|l| !l.is_empty())
            .count()
            == 1
    });
    assert_eq!(varnish.counter("boots"), 9);
    let one = descriptors[0].max(20);
    eventually("descriptors are freed", || {
        varnish.child().kvm_descriptors() <= one
    });
    assert_eq!(varnish.counter("failures"), 0);
    assert_eq!(varnish.counter("refused"), 0);
}

#[test]
fn a_vcl_is_discarded_while_its_program_boots_and_while_it_answers() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(
        r#"kvm.tenant("slow", "GUESTS/test/bad-main-sleeps", max_boot_time = 20s);"#,
    );
    // One of a name boots at a time, and the other one begins again after it.
    let later = varnish
        .reload(r#"kvm.tenant("slow", "GUESTS/test/bad-main-sleeps", max_boot_time = 19s);"#);
    // They are discarded while one boots and one waits for its turn.
    varnish.reload(r#"kvm.tenant("echo", "GUESTS/test/echo", max_request_time = ENOUGH);"#);
    varnish.admin(&["vcl.discard", "boot"]);
    varnish.admin(&["vcl.discard", &later]);
    let mut client = varnish.client();
    assert_eq!(client.get("echo", "/counter").text(), "1\n");
    eventually("nothing boots for nobody", || {
        !varnish.child().has_thread("kvm-boot")
    });
    assert_eq!(varnish.counter("boots"), 1);
    assert_eq!(varnish.counter("boot_failures"), 0);

    // A request outlives the use of its VCL.
    client
        .begin("GET", "echo", "/sleep-loop/5000", &[], Body::None)
        .unwrap();
    eventually("it runs", || {
        varnish.admin(&["backend.list", "-p"]).contains("idle=0")
    });
    varnish.reload(r#"kvm.tenant("hello", "GUESTS/hello");"#);
    varnish.admin(&["vcl.discard", "v1"]);
    assert_eq!(varnish.client().get("hello", "/").status, 200);
    let response = client.response("GET").unwrap();
    assert_eq!(
        (response.status, response.text()),
        (200, "looped 5000 ms\n")
    );
    eventually("the VCL is gone", || {
        !varnish.admin(&["vcl.list"]).contains("v1")
    });
}
