//! Names and their addresses, as the host's own resolver has them: getaddrinfo(3) on a few threads, since it can be neither
//! made not to wait nor ended.

use std::collections::VecDeque;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// How many names are looked up at once, by all programs together.
const THREADS: usize = 4;
/// Most names that wait for that.
const MOST_WAITING: usize = 256;
/// Most names that one machine has looked up at once.
const MOST_ASKED: usize = 16;
/// Most addresses of either family that are looked at: an answer has room for them, however long the name.
pub const MOST_ADDRESSES: usize = 8;
/// How long a name may take.
const LONGEST: Duration = Duration::from_secs(5);

/// Finds the addresses of a name.
pub type Lookup = fn(&str) -> Vec<IpAddr>;

/// What getaddrinfo(3) says: the host's file of hosts, name servers and whatever else it is told to ask.
pub fn of_host(name: &str) -> Vec<IpAddr> {
    let Ok(found) = (name, 0).to_socket_addrs() else {
        return Vec::new();
    };
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    addresses.dedup();
    let of = |v4: bool| move |ip: &&IpAddr| ip.is_ipv4() == v4;
    let part = |v4| {
        addresses
            .iter()
            .filter(of(v4))
            .take(MOST_ADDRESSES)
            .copied()
    };
    part(true).chain(part(false)).collect()
}

/// What became of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name.
    pub name: String,
    /// Its addresses, which may be none. `None`: it took too long.
    pub addresses: Option<Vec<IpAddr>>,
}

struct Job {
    name: String,
    lookup: Lookup,
    answers: Arc<Answers>,
}

/// What was found, and what tells of it.
#[derive(Debug)]
struct Answers {
    found: Mutex<Vec<Found>>,
    event: OwnedFd,
}

/// The names that one machine has looked up.
#[derive(Debug)]
pub struct Names {
    answers: Arc<Answers>,
    asked: Vec<(String, Instant)>,
    lookup: Lookup,
}

impl Names {
    /// Nothing asked yet.
    pub fn new(lookup: Lookup) -> Result<Self, Errno> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let found = Mutex::default();
        Ok(Self {
            answers: Arc::new(Answers { found, event }),
            asked: Vec::new(),
            lookup,
        })
    }

    /// Has a name looked up, unless that is under way. False if too many are.
    pub fn ask(&mut self, name: &str) -> bool {
        if self.asked.iter().any(|(asked, _)| asked == name) {
            return true;
        }
        if self.asked.len() >= MOST_ASKED {
            return false;
        }
        let job = Job {
            name: name.to_owned(),
            lookup: self.lookup,
            answers: Arc::clone(&self.answers),
        };
        let taken = threads().is_some_and(|threads| threads.add(job));
        if taken {
            let until = Instant::now() + LONGEST;
            self.asked.push((name.to_owned(), until));
        }
        taken
    }

    /// What was found since, and what took too long.
    pub fn found(&mut self) -> Vec<Found> {
        if self.asked.is_empty() {
            return Vec::new();
        }
        // It may hold nothing.
        let _ = rustix::io::read(&self.answers.event, &mut [0; 8]);
        let mut all = std::mem::take(&mut *lock(&self.answers.found));
        let now = Instant::now();
        for (name, _) in self.asked.iter().filter(|(_, until)| *until <= now) {
            all.push(Found {
                name: name.clone(),
                addresses: None,
            });
        }
        // What has been given up may come after all, when nobody has asked.
        all.retain(|found| self.asked.iter().any(|(name, _)| *name == found.name));
        self.asked
            .retain(|(name, _)| all.iter().all(|found| found.name != *name));
        all
    }

    /// When the first of them has taken too long; `None` if none is under way.
    pub fn until(&self) -> Option<Instant> {
        self.asked.iter().map(|(_, until)| *until).min()
    }
}

/// Readable when something was found.
impl AsFd for Names {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answers.event.as_fd()
    }
}

/// The threads, and what they have yet to do.
#[derive(Default)]
struct Threads {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
}

/// The threads of this process. `None` if there can be none.
fn threads() -> Option<&'static Threads> {
    static THREADS_OF_PROCESS: OnceLock<Option<&'static Threads>> = OnceLock::new();
    *THREADS_OF_PROCESS.get_or_init(|| {
        let threads: &'static Threads = Box::leak(Box::default());
        let started = (0..THREADS).filter(|number| {
            std::thread::Builder::new()
                .name(format!("names-{number}"))
                .spawn(|| threads.work())
                .is_ok()
        });
        (started.count() > 0).then_some(threads)
    })
}

impl Threads {
    fn add(&self, job: Job) -> bool {
        let mut jobs = lock(&self.jobs);
        if jobs.len() >= MOST_WAITING {
            return false;
        }
        jobs.push_back(job);
        self.more.notify_one();
        true
    }

    fn work(&self) {
        loop {
            let mut jobs = lock(&self.jobs);
            let job = loop {
                match jobs.pop_front() {
                    Some(job) => break job,
                    None => {
                        jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            drop(jobs);
            // Whose machine is gone waits no more.
            if Arc::strong_count(&job.answers) > 1 {
                job.run();
            }
        }
    }
}

impl Job {
    fn run(self) {
        let addresses = (self.lookup)(&self.name);
        lock(&self.answers.found).push(Found {
            name: self.name,
            addresses: Some(addresses),
        });
        // Where it can't be told, its time runs out.
        let _ = rustix::io::write(&self.answers.event, &1u64.to_ne_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(names: &mut Names) -> Vec<Found> {
        loop {
            let found = names.found();
            if !found.is_empty() {
                return found;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_name_is_looked_up_once_at_a_time() {
        let mut names = Names::new(|name| vec![([127, 0, 0, name.len() as u8]).into()]).unwrap();
        assert!(names.found().is_empty() && names.until().is_none());
        assert!(names.ask("a") && names.ask("a"));
        assert!(names.until().is_some());
        let found = Found {
            name: "a".into(),
            addresses: Some(vec![[127, 0, 0, 1].into()]),
        };
        assert_eq!(wait(&mut names), [found]);
        assert!(names.until().is_none());
    }

    #[test]
    fn names_under_way_have_a_limit() {
        let mut names = Names::new(|_| {
            std::thread::sleep(Duration::from_millis(100));
            Vec::new()
        })
        .unwrap();
        for number in 0..MOST_ASKED {
            assert!(names.ask(&number.to_string()));
        }
        assert!(!names.ask("more") && names.ask("0"));
        let mut came = 0;
        while came < MOST_ASKED {
            came += wait(&mut names).len();
        }
        assert!(names.ask("more"));
    }

    #[test]
    fn the_hosts_own_file_is_read() {
        assert!(of_host("localhost").iter().all(IpAddr::is_loopback));
        assert!(!of_host("localhost").is_empty());
        assert!(of_host("no such name").is_empty());
    }
}
