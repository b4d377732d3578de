//! Guests' bodies that Varnish has not taken yet. Each is in its fork, until it is copied: by Varnish piece by piece, by
//! [`Held::keep`] at once, or at its request's deadline, when the fork has to be back however long VCL takes over the
//! response's head.
#![forbid(unsafe_code)]

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use forkvm::Answer;
use parking_lot::Mutex;
use varnish::vcl::VclError;

use crate::fetch::due::{Due, Holder};

/// A guest's body.
pub struct Held {
    body: Arc<Mutex<Body>>,
    due: Mutex<Option<Due>>,
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

impl Holder for Mutex<Body> {
    fn give_back(&self) {
        // Whoever reads it is told.
        let _ = keep(self);
    }
}

impl Held {
    /// The body of an answer, of which so many bytes count. Its fork has to be back at `deadline`.
    pub fn new(answer: Answer, left: usize, deadline: Instant) -> Self {
        let body = Arc::new(Mutex::new(Body {
            left,
            place: Place::Fork(Box::new(answer)),
        }));
        let due = Mutex::new(Some(Due::at(deadline, &body)));
        Self { body, due }
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
        self.due.lock().take();
        keep(&self.body)
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
