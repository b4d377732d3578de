//! A connection that a request has made go over to another protocol, as WebSockets do: it keeps its fork until it ends.

use std::time::Instant;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout_at;

use super::ledger::Ledger;

/// Both ends.
pub struct Both {
    pub client: OnUpgrade,
    pub program: OnUpgrade,
    /// When it is ended, whatever goes on. The fork has ended its part before.
    pub deadline: Instant,
}

/// Moves bytes between the two until the program leaves. The fork has the limits.
pub async fn serve(both: Both, mut ledger: Ledger) {
    let deadline = both.deadline.into();
    let moved = async {
        let (Ok(client), Ok(program)) = (both.client.await, both.program.await) else {
            return;
        };
        let (client_says, client_hears) = tokio::io::split(TokioIo::new(client));
        let (program_says, program_hears) = tokio::io::split(TokioIo::new(program));
        let up = async {
            copy(client_says, program_hears, |_| ()).await;
            // The program may still have something to say.
            std::future::pending::<()>().await;
        };
        let down = copy(program_says, client_hears, |n| ledger.add_bytes(n));
        tokio::select! {
            () = up => {}
            () = down => {}
        }
    };
    // A client that does not listen is left at the deadline.
    let _ = timeout_at(deadline, moved).await;
}

/// Copies until one of the two is gone, and says that there is no more.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut moved: impl FnMut(u64),
) {
    let mut piece = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        if to.write_all(&piece[..n]).await.is_err() {
            return;
        }
        moved(n as u64);
    }
    let _ = to.shutdown().await;
}
