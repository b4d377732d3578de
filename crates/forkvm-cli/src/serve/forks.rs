//! The forks: a thread for each, that serves one connection after the other.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forkvm::{Closed, Connection, Server, ServerFork};

use super::output::Output;
use super::stream::Client;

/// Connections on their way to a fork.
#[derive(Clone)]
pub struct Forks {
    clients: SyncSender<Client>,
    running: Arc<Running>,
}

/// How many threads there are.
#[derive(Default)]
struct Running {
    count: Mutex<usize>,
    ended: Condvar,
}

impl Forks {
    /// Starts the threads.
    pub fn start(
        server: &Arc<Server>,
        count: usize,
        backlog: usize,
        resets: bool,
        output: Output,
    ) -> Result<Self, String> {
        let (clients, inbox) = sync_channel(backlog);
        let inbox = Arc::new(Mutex::new(inbox));
        let running = Arc::new(Running::default());
        for number in 0..count {
            // The first one says what is wrong, before anybody connects.
            let fork = ServerFork::new(server.clone()).map_err(|error| error.to_string())?;
            let (server, inbox, running) = (server.clone(), inbox.clone(), running.clone());
            *lock(&running.count) += 1;
            std::thread::Builder::new()
                .name(format!("fork-{number}"))
                .spawn(move || {
                    serve_all(&server, fork, &inbox, resets, output);
                    *lock(&running.count) -= 1;
                    running.ended.notify_all();
                })
                .map_err(|error| format!("a thread for a fork: {error}"))?;
        }
        Ok(Self { clients, running })
    }

    /// Has a connection served as soon as there is a fork. False if too many wait: it is closed then.
    pub fn hand_over(&self, client: Client) -> bool {
        self.clients.try_send(client).is_ok()
    }

    /// Lets the connections that are served come to their end.
    pub fn finish(self, patience: Duration) {
        let Self { clients, running } = self;
        drop(clients);
        let until = Instant::now() + patience;
        let mut count = lock(&running.count);
        while *count > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            count = running
                .ended
                .wait_timeout(count, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is half done where a thread has panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve_all(
    server: &Arc<Server>,
    fork: ServerFork,
    inbox: &Mutex<Receiver<Client>>,
    resets: bool,
    mut output: Output,
) {
    let mut fork = Some(fork);
    loop {
        let Ok(mut client) = lock(inbox).recv() else {
            return;
        };
        let mut taken = match fork
            .take()
            .map_or_else(|| ServerFork::new(server.clone()), Ok)
        {
            Ok(fork) => fork,
            Err(error) => {
                err!("forkvm: no fork could be made: {error}");
                continue;
            }
        };
        let served = taken.serve(&mut client, &mut output);
        let goes_on = match &served {
            Ok(Closed::ByServer | Closed::ByClient | Closed::Idle) => true,
            Err(cause) => {
                let peer = client.peer();
                let who = peer.map_or_else(|| "a client".into(), |peer| peer.to_string());
                err!("forkvm: serving {who}: {}", server.describe(cause));
                false
            }
        };
        // The client has all that it gets.
        drop(client);
        if resets && taken.reset().is_ok() || !resets && goes_on {
            fork = Some(taken);
        }
    }
}
