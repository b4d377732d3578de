//! Bodies that a program makes while its client reads them.

use std::sync::Arc;

use forkvm::{Failure, Streaming};
use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use tokio::runtime::Handle;
use tokio::time::timeout_at;

use super::load::Loaded;

/// How much of one is on its way at a time.
const PIECE: usize = 64 << 10;

/// Has a thread make one as long as its client reads. What goes wrong is said as `what` failed.
pub fn send(
    mut streaming: Box<Streaming>,
    loaded: Arc<Loaded>,
    what: String,
) -> Channel<Bytes, Failure> {
    let (mut sender, body) = Channel::new(1);
    let runtime = Handle::current();
    runtime.clone().spawn_blocking(move || {
        if let Err(failure) = pass_on(&mut streaming, &loaded, &mut sender, &runtime) {
            err!("{what}: {failure}");
            sender.abort(failure);
        }
    });
    body
}

/// To the end, unless the client leaves before.
fn pass_on(
    streaming: &mut Streaming,
    loaded: &Loaded,
    sender: &mut Sender<Bytes, Failure>,
    runtime: &Handle,
) -> Result<(), Failure> {
    let mut terminal = loaded.terminal();
    let mut piece = vec![0; PIECE];
    let deadline = streaming.deadline().into();
    loop {
        let len = streaming.read(&mut piece, &mut terminal)?;
        if len == 0 {
            return Ok(());
        }
        let sent = sender.send_data(Bytes::copy_from_slice(&piece[..len]));
        match runtime.block_on(async { timeout_at(deadline, sent).await }) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Failure::ReadSlowly),
        }
    }
}
