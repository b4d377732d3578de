//! `forkvm doctor`: what this machine's KVM offers, and who may use it.

mod access;

use std::fmt::Write as _;
use std::os::unix::fs::FileTypeExt;
use std::process::ExitCode;

use access::{Account, Device};
use clap::Args;
use forkvm::{KvmReport, KvmUnavailable};
use serde::Serialize;

/// Users that Varnish and Vinyl give their child process to, if they are there.
const VARNISH_USERS: [&str; 3] = ["vcache", "vinyl", "varnish"];

/// XCR0's components by bit (Intel SDM Vol. 1, 13.1).
const XCR0_NAMES: [(u32, &str); 6] = [
    (1, "SSE"),
    (2, "AVX"),
    (5, "AVX-512"),
    (9, "PKRU"),
    (17, "AMX configuration"),
    (18, "AMX data"),
];

const AS_VARNISH: &str = "\
Varnish's user:
  varnishd that root starts gives its child process, where programs run, to a user of its own: vcache, or vinyl. That
  user has to be in the group of /dev/kvm, may read the programs and the key files, and may write where updates are
  stored (state_dir). Ask with:  forkvm doctor --user vcache
  A process keeps the groups it was started with: restart Varnish after a change (systemctl restart varnish).
  For a try as the present user: varnishd -j none.

Exit status: 0 if guests can run here, and may be run by the user; 1 if not.";

/// Arguments of `forkvm doctor`.
#[derive(Debug, Args)]
#[command(after_help = AS_VARNISH)]
pub struct Doctor {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Say whether this user may use /dev/kvm, by its groups; a name or a number [default: who runs the command].
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

/// What was found out, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Findings {
    /// /dev/kvm, if it is there.
    device: Option<Device>,
    /// Who was asked about.
    user: Account,
    /// Whether the user may use the device: tried for oneself, by owner, group and mode for others.
    allowed: bool,
    /// What KVM offers, if it could be tried.
    kvm: Option<Kvm>,
    /// Whether the user can run guests here. For others than oneself, as far as could be tried.
    ok: bool,
    /// What is in the way.
    problems: Vec<String>,
    /// Commands for root that help.
    remedy: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Kvm {
    api_version: i32,
    syscall_enters_ring: u8,
    dirty_ring_entries: u32,
    round_trip_us: f64,
    fsgsbase: bool,
    protection_keys: bool,
    /// Programs of `serve` and `exec` tell the time without an exit.
    counter_is_a_clock: bool,
    vector_state: Vec<&'static str>,
    xcr0: u64,
    cr4: u64,
}

impl Kvm {
    fn new(report: &KvmReport) -> Self {
        let has = |bit: u32| report.xcr0 >> bit & 1 == 1;
        let names = XCR0_NAMES.iter().filter(|(bit, _)| has(*bit));
        Self {
            api_version: report.api_version,
            syscall_enters_ring: if report.syscall_enters_ring0 { 0 } else { 3 },
            dirty_ring_entries: report.dirty_ring_bytes / 16,
            round_trip_us: (report.round_trip.as_secs_f64() * 1e7).round() / 10.0,
            fsgsbase: report.fsgsbase,
            protection_keys: report.protection_keys,
            counter_is_a_clock: report.counter_is_a_clock,
            vector_state: std::iter::once("x87")
                .chain(names.map(|&(_, name)| name))
                .collect(),
            xcr0: report.xcr0,
            cr4: report.cr4,
        }
    }
}

impl Doctor {
    /// Prints the findings. Fails if no guest can run.
    pub fn execute(&self) -> ExitCode {
        let findings = match Findings::gather(self.user.as_deref()) {
            Ok(findings) => findings,
            Err(what) => {
                err!("forkvm: {what}");
                return ExitCode::FAILURE;
            }
        };
        if self.json {
            out!("{:#}", serde_json::json!(findings));
        } else {
            out!("{}", findings.text().trim_end());
        }
        if findings.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl Findings {
    fn gather(user: Option<&str>) -> Result<Self, String> {
        let own = Account::own();
        let user = match user {
            Some(name) => Account::of(name)?,
            None => Account::own(),
        };
        // Another's groups, or one's own that this process was not started with, can't be tried.
        let is_own = user.user.id == own.user.id && user.groups == own.groups;
        let mut problems = Vec::new();
        let device = match std::fs::metadata("/dev/kvm") {
            Ok(found) if found.file_type().is_char_device() => Some(Device::new(&found)),
            Ok(_) => {
                problems.push("/dev/kvm is there, but is no device".to_owned());
                None
            }
            Err(_) => None,
        };
        let probed = forkvm::probe();
        let by_mode = device.as_ref().is_some_and(|device| device.allows(&user));
        let denied = matches!(probed, Err(KvmUnavailable::NotAllowed { .. }));
        let allowed = if is_own { by_mode && !denied } else { by_mode };
        let mut remedy = Vec::new();
        if let (false, Some(device)) = (allowed, &device) {
            problems.push(format!("user {} may not use /dev/kvm", user.user.word()));
            remedy = device.remedy(&user.user);
        }
        match &probed {
            // Said above of oneself; of another it says nothing.
            Err(KvmUnavailable::NotAllowed { .. }) => {}
            Err(error) => problems.push(error.to_string()),
            Ok(_) => {}
        }
        Ok(Self {
            device,
            user,
            allowed,
            kvm: probed.ok().as_ref().map(Kvm::new),
            ok: problems.is_empty(),
            problems,
            remedy,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<22} {value}");
        };
        match &self.device {
            Some(device) => line(
                "/dev/kvm",
                format!(
                    "owner {}, group {}, mode {}",
                    device.owner, device.group, device.mode
                ),
            ),
            None => line("/dev/kvm", "is not there".into()),
        }
        let groups: Vec<_> = self.user.groups.iter().map(ToString::to_string).collect();
        line(
            "user",
            format!("{}, groups {}", self.user.user, groups.join(", ")),
        );
        line("may use /dev/kvm", yes_no(self.allowed).into());
        if let Some(kvm) = &self.kvm {
            kvm.describe(&mut line);
        }
        self.conclude(&mut text);
        text
    }

    fn conclude(&self, text: &mut String) {
        let user = self.user.user.word();
        if self.ok && self.kvm.is_some() {
            *text += "\nGuests can run here.\n";
        } else if self.ok {
            let _ = writeln!(
                text,
                "\n{user} may use /dev/kvm. Whether guests run there was not tried, since you may not use it."
            );
        } else {
            let _ = writeln!(
                text,
                "\nNo guest can run here: {}",
                self.problems.join("; ")
            );
        }
        if !self.remedy.is_empty() {
            *text += "As root:\n";
            for command in &self.remedy {
                let _ = writeln!(text, "    {command}");
            }
            *text += "Then log in again, or restart Varnish if it is its user: a process keeps the groups it started with.\n";
        }
        let varnish = VARNISH_USERS
            .iter()
            .filter(|&&name| name != user)
            .find(|name| Account::of(name).is_ok());
        if let Some(name) = varnish {
            let _ = writeln!(
                text,
                "Whether Varnish's user may: forkvm doctor --user {name}"
            );
        }
    }
}

impl Kvm {
    fn describe(&self, line: &mut impl FnMut(&str, String)) {
        line("API version", self.api_version.to_string());
        let entry = match self.syscall_enters_ring {
            0 => "ring 0, as on Intel and AMD hardware",
            _ => "ring 3, as on kvm_pvm",
        };
        line("syscall arrives in", entry.into());
        line(
            "dirty ring",
            format!("up to {} entries", self.dirty_ring_entries),
        );
        line(
            "KVM_RUN round trip",
            format!("{:.1} µs", self.round_trip_us),
        );
        line("FSGSBASE in guests", yes_no(self.fsgsbase).into());
        line("protection keys", yes_no(self.protection_keys).into());
        line(
            "time without an exit",
            yes_no(self.counter_is_a_clock).into(),
        );
        line(
            "vector state",
            format!("{} (XCR0 {:#x})", self.vector_state.join(" "), self.xcr0),
        );
        line("CR4 of guests", format!("{:#x}", self.cr4));
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
