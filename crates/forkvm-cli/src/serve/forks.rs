//! The forks: a thread for each, that serves one connection after the other.

use std::sync::Arc;
use std::time::Duration;

use forkvm::{Cause, Closed, Connection, Server, ServerFork};

use super::observed::observer::Observer;
use super::observed::record::{End, Served};
use super::output::Output;
use super::queue::Queue;
use super::stream::Client;
use super::turns::Turns;

/// A server's forks. When this is dropped they serve what waits, and end.
pub struct Forks {
    queue: Arc<Queue<Client>>,
}

/// How they are to be.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub count: usize,
    /// How many connections may wait for one, and for how long.
    pub backlog: usize,
    pub max_wait: Duration,
    /// They are reset after each connection.
    pub resets: bool,
    /// They are given up when no client has come for so long.
    pub max_idle: Duration,
    pub output: Output,
}

impl Forks {
    /// Makes them, and starts their threads, which `turns` looks at.
    pub fn start(
        server: &Arc<Server>,
        setup: Setup,
        observer: &Arc<Observer>,
        turns: &Turns,
    ) -> Result<Self, String> {
        let forks = Self {
            queue: Arc::new(Queue::new(setup.count, setup.backlog)),
        };
        for number in 0..setup.count {
            // The first one says what is wrong, before anybody connects.
            let mut worker = Worker {
                server: server.clone(),
                fork: None,
                setup,
                observer: observer.clone(),
                queue: forks.queue.clone(),
                turns: turns.clone(),
            };
            worker.fork = Some(worker.try_to_make()?);
            std::thread::Builder::new()
                .name(format!("fork-{number}"))
                .spawn(move || {
                    worker.warm_up();
                    worker.serve_all();
                })
                .map_err(|error| format!("a thread for a fork: {error}"))?;
        }
        Ok(forks)
    }

    /// Has a connection served as soon as there is a fork. One that finds too many waiting is turned away.
    pub fn hand_over(&self, client: Client) {
        if let Err(client) = self.queue.push(client) {
            client.turn_away(End::Refused);
        }
    }

    /// How many connections wait for a fork, and how many forks for a connection.
    pub fn lengths(&self) -> (usize, usize) {
        self.queue.lengths()
    }
}

impl Drop for Forks {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct Worker {
    server: Arc<Server>,
    /// `None` only if none could be made.
    fork: Option<ServerFork>,
    setup: Setup,
    observer: Arc<Observer>,
    queue: Arc<Queue<Client>>,
    turns: Turns,
}

impl Worker {
    fn serve_all(mut self) {
        let turn = self.turns.of_this_thread();
        let queue = self.queue.clone();
        while let Some(client) = queue.pop(self.setup.max_idle, || self.rest()) {
            turn.begin();
            self.serve(client);
            queue.done();
            if turn.end() {
                return self.turns.clone().hand_on(move || self.serve_all());
            }
        }
        self.give_up_fork();
    }

    /// No client has come for long: the next one has a fork made anew. One that keeps its state is not to be had again.
    fn rest(&mut self) {
        if self.setup.resets {
            self.give_up_fork();
        }
    }

    fn give_up_fork(&mut self) {
        if self.fork.take().is_some() {
            self.observer.fork_gone(false);
        }
    }

    fn serve(&mut self, mut client: Client) {
        let wait = client.waits();
        if wait > self.setup.max_wait {
            return client.turn_away(End::Refused);
        }
        let Some(mut fork) = self.fork.take().or_else(|| self.make()) else {
            return client.turn_away(End::NoFork);
        };
        let result = fork.serve(&mut client, &mut self.setup.output);
        let end = end_of(&result);
        if matches!(end, End::TimedOut | End::OutOfMemory | End::Failed) {
            client.abort();
        } else {
            client.close();
        }
        let spent = fork.spent();
        let served = Served {
            wait,
            exits: spent.exits,
            pages: spent.pages,
            bytes: client.sent(),
            end,
        };
        if let Err(cause) = &result {
            self.tell(cause, &client);
        }
        client.end(served);
        let usable = if self.setup.resets {
            fork.reset().is_ok()
        } else {
            result.is_ok() && !fork.has_forked()
        };
        if usable {
            if self.setup.resets {
                self.observer.fork_reset(spent.pages);
            }
            self.fork = Some(fork);
        } else {
            drop(fork);
            self.observer.fork_gone(true);
            // So that the next connection has not to wait for it.
            self.fork = self.make();
            self.warm_up();
        }
    }

    /// Has the fork serve the warm-up requests. One that can't is replaced by one that has not.
    fn warm_up(&mut self) {
        let Some(fork) = &mut self.fork else {
            return;
        };
        if let Err(error) = fork.warm_up(None, &mut self.setup.output) {
            err!("forkvm: a new fork: {error}");
            self.fork = None;
            self.observer.fork_gone(true);
            self.fork = self.make();
        }
    }

    fn make(&self) -> Option<ServerFork> {
        self.try_to_make()
            .inspect_err(|error| err!("forkvm: no fork could be made: {error}"))
            .ok()
    }

    fn try_to_make(&self) -> Result<ServerFork, String> {
        let make = if self.setup.resets {
            ServerFork::new
        } else {
            ServerFork::never_reset
        };
        let fork = make(self.server.clone()).map_err(|error| error.to_string())?;
        self.observer.fork_made();
        Ok(fork)
    }

    fn tell(&self, cause: &Cause, client: &Client) {
        let peer = client.peer();
        let who = peer.map_or_else(|| "a client".into(), |peer| peer.to_string());
        err!("forkvm: serving {who}: {}", self.server.describe(cause));
    }
}

fn end_of(result: &Result<Closed, Cause>) -> End {
    match result {
        Ok(Closed::ByServer) => End::Server,
        Ok(Closed::ByClient) | Err(Cause::Stopped) => End::Client,
        Ok(Closed::Idle) => End::Idle,
        Ok(Closed::OutOfTime) | Err(Cause::Timeout) => End::TimedOut,
        Err(Cause::MemoryLimit) => End::OutOfMemory,
        Err(_) => End::Failed,
    }
}
