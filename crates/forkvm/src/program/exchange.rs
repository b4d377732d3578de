//! A request on its way to a program or a server: its body goes in as it comes.

use std::time::Instant;

use crate::failure::Failure;
use crate::program::answer::Answer;
use crate::program::conversation::{Conversation, Later};
use crate::program::posting::Posting;
use crate::request::Host;

/// A request that a fork has begun to answer. Dropping it ends that.
#[derive(Debug)]
pub struct Exchange(With);

#[derive(Debug)]
enum With {
    Server(Box<Conversation>),
    Program(Posting),
}

impl Exchange {
    /// With a fork of a server.
    pub(super) fn with_server(conversation: Conversation) -> Self {
        Self(With::Server(Box::new(conversation)))
    }

    /// With a fork of a program.
    pub(super) fn with_program(posting: Posting) -> Self {
        Self(With::Program(posting))
    }

    /// Passes on a piece of the request's body, and has the fork go on until it waits for more, or `deadline`. False: it wants no
    /// more, since it has answered, or a server has closed the connection.
    ///
    /// # Errors
    /// The program or the server failed.
    pub fn feed(
        &mut self,
        piece: &[u8],
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<bool, Failure> {
        match &mut self.0 {
            With::Server(conversation) => conversation.feed(piece, deadline, host),
            With::Program(posting) => posting.feed(piece, deadline, host),
        }
    }

    /// The request is over: waits for the response until `deadline`. Of a server with `later` only for its head, and for the body only
    /// if that follows soon.
    ///
    /// # Errors
    /// The program or the server failed, or there is no room for what it has made already.
    pub fn answer(
        self,
        deadline: Instant,
        later: Option<Later>,
        host: &mut dyn Host,
    ) -> Result<Answer, Failure> {
        match self.0 {
            With::Server(conversation) => conversation.answer(deadline, later, host),
            With::Program(posting) => posting.answer(deadline, host),
        }
    }
}
