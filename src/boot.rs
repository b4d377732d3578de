//! Boots programs in the background: a queue, and a few threads that live as long as there is something in it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use forkvm::Program;
use parking_lot::Mutex;
use varnish::vcl::LogTag;

use crate::counters;
use crate::logging::{self, BootOutput};
use crate::tenant::{State, Tenant};

/// Programs that boot at the same time. More would slow down the requests that are served meanwhile.
const THREADS: usize = 2;

struct Job {
    /// Weak, since the VCL may be discarded before the job's turn.
    tenant: Weak<Tenant>,
    file: Result<File, String>,
}

struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    jobs: VecDeque::new(),
    threads: 0,
});

/// Has `tenant`'s program booted, after those that are already in the queue.
pub fn enqueue(tenant: &Arc<Tenant>, file: Result<File, String>) {
    let mut queue = QUEUE.lock();
    queue.jobs.push_back(Job {
        tenant: Arc::downgrade(tenant),
        file,
    });
    if queue.threads == THREADS {
        return;
    }
    match thread::Builder::new().name("kvm-boot".into()).spawn(work) {
        Ok(_) => queue.threads += 1,
        // Another thread takes the job.
        Err(_) if queue.threads > 0 => {}
        Err(error) => {
            queue.jobs.pop_back();
            drop(queue);
            settle(
                tenant,
                Err(format!("no thread to boot it: {error}")),
                Instant::now(),
            );
        }
    }
}

fn work() {
    loop {
        let mut queue = QUEUE.lock();
        let Some(job) = queue.jobs.pop_front() else {
            queue.threads -= 1;
            return;
        };
        drop(queue);
        let Some(tenant) = job.tenant.upgrade() else {
            continue;
        };
        let start = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| boot(&tenant, job.file)))
            .unwrap_or_else(|_| Err("internal error, logged separately".into()));
        settle(&tenant, result, start);
    }
}

fn boot(tenant: &Tenant, file: Result<File, String>) -> Result<Arc<Program>, String> {
    let settings = &tenant.settings;
    let path = settings.path.display();
    let elf = file
        .and_then(|file| {
            read(file, settings.config.limits.max_memory).map_err(|error| error.to_string())
        })
        .map_err(|reason| format!("{path}: {reason}"))?;

    let mut output = BootOutput::new(tenant.name(), settings.stdout);
    let result = Program::boot(&elf, settings.config.clone(), &mut output);
    let stderr = output.finish();
    result.map_err(|error| {
        let error = error.to_string();
        let error = logging::without_tenant(tenant.name(), &error);
        let said: Vec<String> = logging::records(&stderr).collect();
        match said.len() {
            0 => format!("{path}: {error}"),
            _ => format!("{path}: {error}; its stderr ends in: {}", said.join(" | ")),
        }
    })
}

fn read(file: File, max: u64) -> io::Result<Vec<u8>> {
    let mut elf = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut elf)?;
    if elf.len() as u64 > max {
        return Err(io::Error::other(format!(
            "is larger than max_memory ({max} bytes)"
        )));
    }
    Ok(elf)
}

fn settle(tenant: &Tenant, result: Result<Arc<Program>, String>, start: Instant) {
    match result {
        Ok(program) => {
            counters::count(|counters| &counters.boots);
            tenant.settle(State::Ready(program));
            let text = format!("ready after {} ms", start.elapsed().as_millis());
            logging::log(LogTag::Notice, tenant.name(), &text);
        }
        Err(reason) => {
            counters::count(|counters| &counters.boot_failures);
            logging::log(
                LogTag::Error,
                tenant.name(),
                &format!("program not ready: {reason}"),
            );
            tenant.settle(State::Failed(reason.into()));
        }
    }
}
