//! `forkvm doctor`: what this machine's KVM offers.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::ExitCode;

/// XCR0's components by bit (Intel SDM Vol. 1, 13.1).
const XCR0_NAMES: [(u32, &str); 6] = [
    (1, "SSE"),
    (2, "AVX"),
    (5, "AVX-512"),
    (9, "PKRU"),
    (17, "AMX configuration"),
    (18, "AMX data"),
];

/// Prints the findings. Fails if no guest can run.
pub fn execute() -> ExitCode {
    describe_device();
    match forkvm::probe() {
        Ok(report) => {
            describe(&report);
            out!("\nGuests can run here.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            out!("\nNo guest can run here: {error}");
            ExitCode::FAILURE
        }
    }
}

fn describe_device() {
    match std::fs::metadata("/dev/kvm") {
        Ok(device) if device.file_type().is_char_device() => {
            out!(
                "/dev/kvm               owner {}, group {}, mode {:o}",
                device.uid(),
                device.gid(),
                device.mode() & 0o7777
            );
        }
        Ok(_) => out!("/dev/kvm               is there, but is no device"),
        Err(error) => out!("/dev/kvm               {error}"),
    }
}

fn describe(report: &forkvm::KvmReport) {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    out!("API version            {}", report.api_version);
    let entry = if report.syscall_enters_ring0 {
        "ring 0, as on Intel and AMD hardware"
    } else {
        "ring 3, as on kvm_pvm"
    };
    out!("syscall arrives in     {entry}");
    out!(
        "dirty ring             up to {} entries",
        report.dirty_ring_bytes / 16
    );
    out!("FSGSBASE in guests     {}", yes_no(report.fsgsbase));
    out!("protection keys        {}", yes_no(report.protection_keys));
    let names: Vec<_> = XCR0_NAMES
        .iter()
        .filter(|(bit, _)| report.xcr0 >> bit & 1 == 1)
        .map(|&(_, name)| name)
        .collect();
    out!(
        "vector state           x87 {} (XCR0 {:#x})",
        names.join(" "),
        report.xcr0
    );
    out!("CR4 of guests          {:#x}", report.cr4);
}
