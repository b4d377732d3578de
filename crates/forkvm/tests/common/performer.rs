//! The guest `ops`, booted: performs lists, and shows what a request can see.
// Each user takes a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use forkvm::{Failure, Quiet, Request};

use crate::common::{Tenant, scaled};
use crate::ops::{self, Finale, Op};

/// Addresses that matter: nothing, code, data, the monitor's pages, windows and their ends, the kernel's half.
pub const ADDRESSES: [u64; 24] = [
    0,
    0x1000,
    0x40_1000,
    0x7e00_0000_1000, // GDT
    0x7e00_0000_2000, // TSS
    0x7e00_0000_3000, // IDT
    0x7e00_0000_4000, // ring-0 code
    0x7e00_0000_6ff8, // ring-0 stack
    0x7e00_0000_7000, // its end
    0x7e00_0000_8000, // ring-3 stubs
    0x7e00_0000_8800,
    0x7e00_0000_9000, // vector state
    0x7e00_0000_d008, // bases
    0x7e00_0000_e000, // entry block
    0x7e00_0000_e020,
    0x7e00_0001_e000, // page tables
    0x7eff_ffff_fff8,
    0x7f00_0000_0000, // mmap window
    0x7f00_0000_0800,
    0x7ffc_fff0_0008, // stack
    0x7fff_ffff_fff8,
    0x8000_0000_0000, // non-canonical
    0xffff_8000_0000_0000,
    0xffff_ffff_8100_0000,
];

/// The tenant, and what its first request saw.
pub struct Performer {
    tenant: Tenant,
    first: String,
    file: PathBuf,
}

impl Deref for Performer {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.tenant
    }
}

impl Performer {
    /// Boots it for a test of this name.
    pub fn boot(test: &str, concurrency: usize) -> Self {
        let file = std::env::temp_dir().join(format!("forkvm-{test}-{}", std::process::id()));
        std::fs::write(&file, "0123456789".repeat(1000)).unwrap();
        let tenant = Tenant::boot_with("ops", |config| {
            config.concurrency = concurrency;
            config.limits.max_memory = 24 << 20;
            // 1,280 pages, which with those of earlier requests are more than the ring holds.
            config.limits.max_request_memory = 5 << 20;
            config.limits.req_mem_limit_after_reset = 4 << 20;
            config.allowed_paths = vec![file.clone().into()];
            config.main_arguments = vec![file.to_str().unwrap().into()];
        });
        let first = tenant.get("/probe").text().to_owned();
        assert!(first.contains("umask 27"), "{first}");
        assert!(first.contains("read 16 0123456789012345"), "{first}");
        Self {
            tenant,
            first,
            file,
        }
    }

    /// Performs a list. The time is long enough for what does not loop.
    pub fn perform(&self, finale: &Finale, ops: &[Op]) -> Result<u16, Failure> {
        self.perform_within(scaled(Duration::from_millis(40)), finale, ops)
    }

    /// Performs a list.
    pub fn perform_within(
        &self,
        time: Duration,
        finale: &Finale,
        ops: &[Op],
    ) -> Result<u16, Failure> {
        let body = ops::body(finale, ops);
        let request = Request {
            method: "POST",
            url: b"/",
            body: &body,
            ..Default::default()
        };
        self.tenant
            .try_send(&request, Instant::now() + time, &mut Quiet)
            .map(|reply| reply.status)
    }

    /// What is wrong after a request, if anything is: pages that differ from the master's, or something that another
    /// request can see.
    pub fn leftovers(&self) -> Result<(), String> {
        match self.tenant.differing_pages() {
            0 => self.visible_leftovers(),
            n => Err(format!("{n} pages differ from the master's")),
        }
    }

    /// The same, without a look at the memory of all forks.
    pub fn visible_leftovers(&self) -> Result<(), String> {
        let now = self.tenant.get("/probe");
        let now = now.text();
        let changed = self.first.lines().zip(now.lines()).find(|(a, b)| a != b);
        match changed {
            _ if now == self.first => Ok(()),
            Some((before, after)) => Err(format!("was {before:?}, is {after:?}")),
            None => Err(format!("{} bytes were {}", now.len(), self.first.len())),
        }
    }
}

impl Drop for Performer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}
