//! Guests' bodies that Varnish has not taken yet. Each is in its fork, until it is copied: by Varnish piece by piece, by
//! [`Held::keep`] at once, or at its request's deadline, when the fork has to be back however long VCL takes over the
//! response's head.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use forkvm::Answer;
use parking_lot::{Condvar, Mutex};
use varnish::vcl::{LogTag, VclError};

use crate::varnish::logging;

/// How often somebody looks for bodies whose time is over.
const INTERVAL: Duration = Duration::from_millis(100);
/// After so many looks at nothing there is no other before there is a body.
const IDLE_LOOKS: u32 = 50;

/// A guest's body.
pub struct Held {
    body: Arc<Mutex<Body>>,
    key: Key,
}

/// What is left of it.
struct Body {
    left: usize,
    place: Place,
}

/// Where it is.
enum Place {
    Fork(Box<Answer>),
    /// Its end is what is left.
    Host(Vec<u8>),
    /// There was no memory for it on the host.
    Nowhere,
}

/// When its fork has to be back, and its address, since others may have the same time.
type Key = (Instant, usize);

#[derive(Default)]
struct Forks {
    /// The bodies in forks.
    due: BTreeMap<Key, Weak<Mutex<Body>>>,
    /// Nobody looks at them before there is another one.
    paused: bool,
}

static FORKS: Mutex<Forks> = Mutex::new(Forks {
    due: BTreeMap::new(),
    paused: false,
});
/// There are forks again.
static RESUMED: Condvar = Condvar::new();
/// Whether there is a thread that looks at them.
static RUNNING: Mutex<bool> = Mutex::new(false);

impl Held {
    /// The body of an answer, of which so many bytes count. Its fork has to be back at `deadline`.
    pub fn new(answer: Answer, left: usize, deadline: Instant) -> Self {
        let body = Arc::new(Mutex::new(Body {
            left,
            place: Place::Fork(Box::new(answer)),
        }));
        let key = (deadline, Arc::as_ptr(&body).addr());
        let mut forks = FORKS.lock();
        forks.due.insert(key, Arc::downgrade(&body));
        if mem::take(&mut forks.paused) {
            RESUMED.notify_one();
        }
        drop(forks);
        Self { body, key }
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.body.lock().left
    }

    /// Fills `buf` from the start, and says with how much. 0 is the end.
    pub fn read(&self, buf: &mut [u8]) -> Result<usize, VclError> {
        let mut body = self.body.lock();
        let left = body.left;
        let len = buf.len().min(left);
        let read = match &mut body.place {
            Place::Fork(answer) => answer.read_body(&mut buf[..len]),
            Place::Host(bytes) => {
                let rest = &bytes[bytes.len() - left..];
                buf[..len].copy_from_slice(&rest[..len]);
                len
            }
            Place::Nowhere => return Err(no_memory(left)),
        };
        if read == 0 && left > 0 {
            return Err(ended_early(left));
        }
        body.left -= read;
        Ok(read)
    }

    /// Copies what is left, and gives the fork back: for a body that Varnish does not take in one go.
    pub fn keep(&self) -> Result<(), VclError> {
        FORKS.lock().due.remove(&self.key);
        keep(&self.body)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        FORKS.lock().due.remove(&self.key);
    }
}

fn keep(body: &Mutex<Body>) -> Result<(), VclError> {
    let mut body = body.lock();
    let left = body.left;
    let Place::Fork(answer) = &mut body.place else {
        return Ok(());
    };
    let kept = copied(answer, left);
    let (place, result) = match kept {
        Ok(bytes) => (Place::Host(bytes), Ok(())),
        Err(error) => (Place::Nowhere, Err(error)),
    };
    let before = mem::replace(&mut body.place, place);
    drop(body);
    // The reset takes time, which is nobody's who only reads.
    drop(before);
    result
}

/// What is left of the body.
fn copied(answer: &mut Answer, left: usize) -> Result<Vec<u8>, VclError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(left).map_err(|_| no_memory(left))?;
    bytes.resize(left, 0);
    let mut at = 0;
    while at < left {
        match answer.read_body(&mut bytes[at..]) {
            0 => return Err(ended_early(left - at)),
            read => at += read,
        }
    }
    Ok(bytes)
}

fn no_memory(left: usize) -> VclError {
    format!("no memory to keep {left} bytes of a response").into()
}

fn ended_early(left: usize) -> VclError {
    format!("the body ended {left} bytes too early").into()
}

/// Begins to look after the forks, unless somebody does. To be called when a tenant has been added.
pub fn start() {
    let mut running = RUNNING.lock();
    if *running {
        return;
    }
    match thread::Builder::new()
        .name("kvm-bodies".into())
        .spawn(look_after)
    {
        Ok(_) => *running = true,
        Err(error) => logging::write(
            LogTag::Error,
            &format!("kvm: a response may hold its fork beyond its deadline, no thread: {error}"),
        ),
    }
}

fn look_after() {
    let mut idle = 0;
    loop {
        thread::sleep(INTERVAL);
        let mut forks = FORKS.lock();
        idle = if forks.due.is_empty() { idle + 1 } else { 0 };
        if idle >= IDLE_LOOKS {
            forks.paused = true;
            RESUMED.wait_while(&mut forks, |forks| forks.paused);
            idle = 0;
        }
        let now = Instant::now();
        let in_time = forks.due.split_off(&(now, usize::MAX));
        let late = mem::replace(&mut forks.due, in_time);
        drop(forks);
        for body in late.into_values().filter_map(|body| body.upgrade()) {
            // Whoever reads it is told. A panic's message is all there is to say about it.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| keep(&body)));
        }
    }
}
