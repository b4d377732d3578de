//! What is stored, in a real varnishd: which program runs after a reload or a restart, and what is taken up by whom.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::client::{Body, Response};
use common::varnishd::Varnishd;
use common::{eventually, guests};

/// Warm-up requests that test/version-a and -b spend so long with, and that the others answer at once.
fn slow(ms: u32, max_boot_time: &str) -> String {
    format!(
        "warmup = 1, warmup_url = \"/slow/{ms}\", max_boot_time = {max_boot_time}, max_request_time = 1h"
    )
}

/// A varnishd, and a tenant "t" whose program is in the varnishd's folder.
struct Stand {
    varnish: Varnishd,
}

impl Stand {
    fn new(program: &str) -> Self {
        let stand = Self {
            varnish: Varnishd::start(""),
        };
        stand.put(program, "program");
        stand
    }

    /// Two tenants whose files are watched: "t" with test/version-a, and "other" with hello and these settings.
    fn watched_with_another(settings: &str) -> Self {
        let stand = Self::new("test/version-a");
        stand.put("hello", "other");
        let tenants = [
            stand.tenant("t", "program", "watch = true"),
            stand.tenant("other", "other", &format!("watch = true, {settings}")),
        ];
        stand.varnish.reload(&tenants.concat());
        stand
    }

    /// kvm.tenant(), for a program in our folder.
    fn tenant(&self, name: &str, file: &str, settings: &str) -> String {
        let path = self.path(file);
        format!(
            "kvm.tenant(\"{name}\", \"{}\", update_key = \"k\", {settings});",
            path.display()
        )
    }

    fn load(&self, settings: &str) -> String {
        self.varnish.reload(&self.tenant("t", "program", settings))
    }

    fn path(&self, file: &str) -> PathBuf {
        self.varnish.dir().join(file)
    }

    /// Puts a guest program in the place of a file, as a package manager would.
    fn put(&self, guest: &str, file: &str) {
        let aside = self.path("aside");
        fs::copy(guests().join(guest), &aside).unwrap();
        fs::rename(aside, self.path(file)).unwrap();
    }

    fn upload(&self, tenant: &str, guest: &str) -> Response {
        let elf = fs::read(guests().join(guest)).unwrap();
        let key = ("X-LiveUpdate", "k");
        let mut client = self.varnish.client();
        client.send("POST", tenant, "/", &[key], Body::Length(&elf))
    }

    fn roll_back(&self, tenant: &str) -> Response {
        let key = ("X-LiveRollback", "k");
        let mut client = self.varnish.client();
        client.send("POST", tenant, "/", &[key], Body::None)
    }

    /// Which program answers, by the first of what it says: 'A', 'B', 'H' (hello), or a number (counter), which is 2
    /// after a warm-up.
    fn answers(&self, tenant: &str) -> char {
        let response = self.varnish.client().get(tenant, "/1");
        assert_eq!(response.status, 200, "{response:?}");
        response.text().chars().next().unwrap()
    }
}

/// A 201.
fn done(response: Response) {
    assert_eq!(response.status, 201, "{}", response.text());
}

#[test]
fn an_update_that_does_not_boot_again_gives_way_to_the_one_before() {
    if !common::have_kvm() {
        return;
    }
    let mut stand = Stand::new("hello");
    stand.load("");
    done(stand.upload("t", "counter"));
    done(stand.upload("t", "test/version-b"));
    assert_eq!(stand.answers("t"), 'B');

    let strict = slow(3_600_000, "1s");
    stand.load(&strict);
    assert_eq!(stand.answers("t"), '2');
    let log = stand.varnish.log("kvm: tenant t: update");
    assert!(
        log.iter().any(|line| line.contains("max_boot_time")),
        "{log:?}"
    );
    // So it is after a restart.
    stand.varnish.kill_child();
    stand.varnish.start_child();
    assert_eq!(stand.answers("t"), '2');
    // Until it is said that the one that runs is the right one.
    assert_eq!(stand.upload("t", "counter").status, 200);
    stand.load("");
    assert_eq!(stand.answers("t"), '1');
    done(stand.roll_back("t"));
    assert_eq!(stand.answers("t"), 'H');

    // At last the file at the path, which is not among those that are kept.
    stand.load("keep_versions = 1");
    done(stand.upload("t", "test/version-a"));
    done(stand.upload("t", "test/version-b"));
    stand.load(&format!("{strict}, keep_versions = 1"));
    assert_eq!(stand.answers("t"), 'H');
    // An update goes on from there.
    done(stand.upload("t", "counter"));
    done(stand.roll_back("t"));
    assert_eq!(stand.answers("t"), 'H');
}

#[test]
fn what_a_watched_file_held_at_first_comes_back_by_a_rollback() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::new("test/version-a");
    stand.load("watch = true");
    assert_eq!(stand.answers("t"), 'A');
    stand.put("test/version-b", "program");
    eventually("the changed file is taken up", || stand.answers("t") == 'B');
    done(stand.roll_back("t"));
    assert_eq!(stand.answers("t"), 'A');
}

#[test]
fn a_watched_file_waits_for_no_other_and_is_tried_again() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::watched_with_another("max_boot_time = 1h");
    assert_eq!((stand.answers("t"), stand.answers("other")), ('A', 'H'));
    // Its main() takes the hour.
    stand.put("test/bad-main-sleeps", "other");
    eventually("the sleeper boots", || {
        stand.upload("other", "hello").status == 409
    });
    stand.put("test/version-b", "program");
    eventually("the changed file is taken up", || stand.answers("t") == 'B');

    // What fails for a lack of something is not the program's fault.
    let failures = stand.varnish.counter("update_failures");
    let limit = stand.varnish.child().leave_descriptors(4);
    stand.put("test/version-a", "program");
    eventually("there are no descriptors", || {
        stand.varnish.counter("update_failures") > failures
    });
    stand.varnish.child().limit_descriptors(limit);
    eventually("it is tried again", || stand.answers("t") == 'A');
}

#[test]
fn an_update_is_answered_before_other_vcls_follow() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::new("hello");
    // version-a would never be done here.
    stand.load(&slow(3_600_000, "1h"));
    assert_eq!(stand.answers("t"), 'H');
    stand.load("max_boot_time = 1s");
    done(stand.upload("t", "test/version-a"));
    assert_eq!(stand.answers("t"), 'A');
    done(stand.upload("t", "counter"));
    assert_eq!(stand.answers("t"), '1');
}

#[test]
fn no_update_is_replaced_by_an_older_one_that_boots_slowly() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::new("test/version-a");
    let quick = stand.load("");
    assert_eq!(stand.answers("t"), 'A');
    // While it boots, another program is stored, which it boots next.
    let slow = stand.load(&slow(3_000, "ENOUGH"));
    stand.varnish.admin(&["vcl.use", &quick]);
    done(stand.upload("t", "test/version-b"));
    stand.varnish.admin(&["vcl.use", &slow]);
    assert_eq!(stand.answers("t"), 'A');
    // Meanwhile comes one that boots at once.
    done(stand.upload("t", "hello"));
    assert_eq!(stand.answers("t"), 'H');
    eventually("everything has booted", || {
        !stand.varnish.child().has_thread("kvm-boot")
            && !stand.varnish.child().has_thread("kvm-update")
    });
    assert_eq!(stand.answers("t"), 'H');
}

#[test]
fn a_tenant_that_follows_again_is_shared_again() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::new("hello");
    let strict = slow(3_600_000, "1s");
    let follower = stand.load(&strict);
    assert_eq!(stand.answers("t"), 'H');
    stand.load("");
    done(stand.upload("t", "test/version-a"));
    eventually("the other VCL's does not boot it", || {
        !stand.varnish.log("not updated for another VCL").is_empty()
    });
    done(stand.upload("t", "counter"));
    eventually("but the next one", || {
        !stand
            .varnish
            .log("for another VCL")
            .iter()
            .all(|line| line.contains("not updated"))
    });
    let boots = stand.varnish.counter("boots");
    stand.load(&strict);
    assert_eq!(stand.answers("t"), '2');
    stand.varnish.admin(&["vcl.discard", &follower]);
    assert_eq!(stand.answers("t"), '2');
    assert_eq!(stand.varnish.counter("boots"), boots);
}

#[test]
fn a_failed_tenant_follows_the_update_that_mends_it() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::new("test/bad-main-crashes");
    let follower = stand.load("idle_time = 50s");
    assert_eq!(stand.varnish.client().get("t", "/").status, 503);
    stand.load("idle_time = 51s");
    done(stand.upload("t", "hello"));
    stand.varnish.admin(&["vcl.use", &follower]);
    eventually("the other VCL's boots it too", || {
        stand.varnish.client().get("t", "/").status == 200
    });
}

#[test]
fn a_rollback_goes_past_programs_that_do_not_boot_any_more() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::new("hello");
    stand.load("keep_versions = 3");
    for program in ["test/version-a", "test/version-b", "counter"] {
        done(stand.upload("t", program));
    }
    stand.load(&format!("{}, keep_versions = 3", slow(3_600_000, "1s")));
    assert_eq!(stand.answers("t"), '2');
    done(stand.roll_back("t"));
    assert_eq!(stand.answers("t"), 'H');
    // Before that there was nothing.
    assert_eq!(stand.roll_back("t").status, 422);
    assert_eq!(stand.answers("t"), 'H');
}

#[test]
fn a_watched_file_that_holds_what_it_held_leaves_the_update() {
    if !common::have_kvm() {
        return;
    }
    let stand = Stand::watched_with_another("");
    done(stand.upload("t", "test/version-b"));
    stand.put("test/version-a", "program");
    // When the other file's second change is taken up, this one has been looked at as often.
    for (program, answer) in [("test/version-a", 'A'), ("test/version-b", 'B')] {
        stand.put(program, "other");
        eventually("the other file is taken up", || {
            stand.answers("other") == answer
        });
    }
    assert_eq!(stand.answers("t"), 'B');
    assert_eq!(stand.varnish.counter("updates"), 3);
    // Other content is a change.
    stand.put("hello", "program");
    eventually("the changed file is taken up", || stand.answers("t") == 'H');
}
