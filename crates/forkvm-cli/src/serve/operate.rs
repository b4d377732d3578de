//! A server's life: boot, readiness, reloads, the end.

use std::ffi::OsString;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use forkvm::{Server, SnapshotError};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use super::address::Address;
use super::admission::admit_all;
use super::config::{self, Effective};
use super::descriptors::{self, Wanted};
use super::doors::{Doors, Fresh, Listening};
use super::ending::Ending;
use super::generation::{Current, Generation};
use super::inside::Inside;
use super::observed::metrics::Now;
use super::observed::observer::Observer;
use super::observed::scrape::Scrapes;
use super::observed::status;
use super::request_body::Beginnings;
use super::seats::Seats;
use super::settings::Serve;
use super::turns::Turns;
use crate::terminal;

/// Serves with these arguments until SIGTERM or SIGINT.
pub async fn operate(arguments: Vec<OsString>, settings: Serve) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|error| error.to_string())?;
    let connections = descriptors::prepare(Wanted {
        connections: settings.max_connections,
        forks: settings.fork_count(),
        requests: match settings.per_request {
            true => settings.fork_count().saturating_add(settings.backlog),
            false => 0,
        },
    })?;
    let observer = Observer::new(settings.access_log.as_deref(), terminal::has_status())?;
    let observer = Arc::new(observer);
    let mut doors = Doors::inherited()?;
    let mut metrics = Doors::none();
    metrics.open(settings.metrics.as_slice())?;
    let turns = Turns::new()?;
    let settings = Arc::new(settings);
    let booting = boot(settings.clone(), observer.clone(), turns.clone());
    let Some(first) = signals.unless_ended(booting).await else {
        return Ok(());
    };
    let first = first?;
    observer.booted(first.server.boot_time(), false);
    doors.open(&addresses(&settings, &doors, &first)?)?;
    err!(
        "forkvm: ready after {:.1?}, {} forks, listening on {}",
        first.server.boot_time(),
        first.fork_count,
        doors.names()
    );
    let whole = whole(first.server.clone());
    let inside = Arc::new(Inside {
        current: Current::new(first),
        seats: Seats::new(connections),
        observer,
        beginnings: Beginnings::new(),
        turns,
        ending: Arc::new(Ending::new().map_err(|error| error.to_string())?),
    });
    let mut admitting = JoinSet::new();
    for door in doors.listening()? {
        admitting.spawn(admit_all(door, inside.clone()));
    }
    let looks = looks(&inside);
    serve_metrics(&metrics, &inside, looks.clone())?;
    status::keep(inside.observer.clone(), looks).map_err(|error| error.to_string())?;
    tell(&[NotifyState::Ready]);
    // Where the rest of a snapshot is damaged there is nothing to go on with.
    let goes_on = match signals.unless_ended(whole).await {
        Some(Err(what)) => return Err(what),
        whole => whole.is_some(),
    };
    while goes_on && signals.next_is_reload().await {
        let reloading = reload(&arguments, &settings, &inside);
        if signals.unless_ended(reloading).await.is_none() {
            break;
        }
    }
    tell(&[NotifyState::Stopping]);
    terminal::end_status();
    inside.ending.begin();
    let last = async {
        while admitting.join_next().await.is_some() {}
        drop(doors);
        inside.seats.all_left().await;
    };
    if let Some(why) = cut_short(last, &mut signals, settings.max_stop_time).await {
        let left = inside.seats.taken();
        err!("forkvm: {left} connections are cut: {why}");
    }
    inside.current.get().tell_unsupported();
    inside.observer.flush();
    Ok(())
}

/// Waits until all of a snapshot is there.
async fn whole(server: Arc<Server>) -> Result<(), String> {
    let waited = tokio::task::spawn_blocking(move || {
        server.wait_until_whole()?;
        Ok::<bool, SnapshotError>(server.is_sealed())
    });
    let waited = waited.await.map_err(|error| error.to_string())?;
    let sealed = waited.map_err(|error| format!("the snapshot can't be used: {error}"))?;
    if !sealed {
        err!(
            "forkvm: the snapshot's memory can't be sealed: the kernel holds a page of it; nobody else can write to it"
        );
    }
    Ok(())
}

/// Waits for the last connections. Gives why that was too long.
async fn cut_short(
    last: impl Future<Output = ()>,
    signals: &mut Signals,
    patience: Duration,
) -> Option<String> {
    tokio::select! {
        () = last => None,
        () = signals.end() => Some("a second signal".into()),
        () = tokio::time::sleep(patience) => {
            Some(format!("they took longer than {patience:?} (max_stop_time)"))
        }
    }
}

/// Where to listen, beside what a service manager has opened.
fn addresses(settings: &Serve, doors: &Doors, first: &Generation) -> Result<Vec<Address>, String> {
    if !settings.listen.is_empty() || !doors.is_empty() {
        return Ok(settings.listen.clone());
    }
    let own = first
        .server
        .address()
        .ok_or("the program listens on no address of the network; say where to: --listen")?;
    Ok(vec![Address::Tcp(own.to_string())])
}

/// Boots the program on a thread of its own.
async fn boot(
    settings: Arc<Serve>,
    observer: Arc<Observer>,
    turns: Turns,
) -> Result<Arc<Generation>, String> {
    let boots = move || Generation::boot(&settings, &observer, &turns);
    let booted = tokio::task::spawn_blocking(boots);
    booted.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Boots the program anew, with the file's settings as they are now, and puts it in the old one's place. What fails leaves
/// that where it is.
async fn reload(arguments: &[OsString], first: &Serve, inside: &Arc<Inside>) {
    let start = NotifyState::monotonic_usec_now();
    match start {
        Ok(start) => tell(&[NotifyState::Reloading, start]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
    inside.observer.reopen_log();
    match booted_anew(arguments, first, inside).await {
        Ok(next) => {
            let took = next.server.boot_time();
            inside.observer.booted(took, true);
            let forks = next.fork_count;
            let before = inside.current.replace(next);
            before.tell_unsupported();
            err!("forkvm: the new program is in place after {took:.1?}, {forks} forks");
        }
        Err(what) => {
            inside.observer.not_booted();
            err!("forkvm: {what}; the program before goes on");
        }
    }
    tell(&[NotifyState::Ready]);
}

async fn booted_anew(
    arguments: &[OsString],
    first: &Serve,
    inside: &Arc<Inside>,
) -> Result<Arc<Generation>, String> {
    let Effective { settings, .. } = config::effective(arguments.to_vec())?;
    let fixed = [
        ("listen", settings.listen == first.listen),
        ("metrics", settings.metrics == first.metrics),
        ("access-log", settings.access_log == first.access_log),
        (
            "max-connections",
            settings.max_connections == first.max_connections,
        ),
        (
            "max-stop-time",
            settings.max_stop_time == first.max_stop_time,
        ),
    ];
    for (name, _) in fixed.iter().filter(|(_, same)| !same) {
        err!("forkvm: {name} stays as it is until the next start");
    }
    let next = boot(
        Arc::new(settings),
        inside.observer.clone(),
        inside.turns.clone(),
    );
    let next = next.await?;
    // The program before would be gone where this one can't go on.
    whole(next.server.clone()).await?;
    Ok(next)
}

/// What to look at for those who ask how it is now.
fn looks(inside: &Arc<Inside>) -> impl Fn() -> Now + Clone + Send + Sync + 'static {
    let inside = inside.clone();
    move || {
        let (waiting, forks_idle) = inside.current.get().forks.lengths();
        Now {
            forks_idle,
            waiting,
            connections: inside.seats.taken(),
        }
    }
}

fn serve_metrics(
    doors: &Doors,
    inside: &Arc<Inside>,
    looks: impl Fn() -> Now + Send + Sync + 'static,
) -> Result<(), String> {
    let scrapes = Scrapes::new(inside.observer.clone(), looks);
    for door in doors.listening()? {
        tokio::spawn(answer_scrapes(door, scrapes.clone()));
    }
    if !doors.is_empty() {
        err!("forkvm: metrics at {}", doors.names());
    }
    Ok(())
}

async fn answer_scrapes(door: Listening, scrapes: Scrapes) {
    loop {
        match door.accept().await {
            Ok(Fresh::Tcp(stream, _)) => {
                let seat = scrapes.seat().await;
                tokio::spawn(scrapes.clone().serve(stream, seat));
            }
            Ok(Fresh::Unix(stream)) => {
                let seat = scrapes.seat().await;
                tokio::spawn(scrapes.clone().serve(stream, seat));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Tells the service manager, if there is one.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        err!("forkvm: the service manager could not be told: {error}");
    }
}

/// What the process is told to do.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. False if it is to end.
    async fn next_is_reload(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => false,
            _ = self.hang_up.recv() => true,
        }
    }

    /// SIGTERM or SIGINT.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// What comes of this, unless the end comes first.
    async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.end() => None,
            result = work => Some(result),
        }
    }
}
