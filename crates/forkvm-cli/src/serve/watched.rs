//! A client's connection that is looked at from beside while HTTP is spoken on it: whether the client is there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::stream::has_left;

/// It. Its clones are the same connection.
#[derive(Debug, Clone)]
pub enum Watched {
    Tcp(Arc<TcpStream>),
    Unix(Arc<UnixStream>),
}

/// Does the same with either.
macro_rules! with {
    ($watched:expr, $stream:ident => $done:expr) => {
        match &*$watched {
            Watched::Tcp($stream) => $done,
            Watched::Unix($stream) => $done,
        }
    };
}

impl Watched {
    /// Whether the client is gone, and has not only sent all that it sends.
    pub fn is_gone(&self) -> bool {
        with!(self, stream => has_left(stream))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(with!(self, stream => stream.poll_read_ready(context)))?;
            match with!(self, stream => stream.try_read_buf(buf)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(with!(self, stream => stream.poll_write_ready(context)))?;
            match with!(self, stream => stream.try_write_vectored(pieces)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done =
            with!(self, stream => rustix::net::shutdown(stream, rustix::net::Shutdown::Write));
        Poll::Ready(done.map_err(io::Error::from))
    }
}
