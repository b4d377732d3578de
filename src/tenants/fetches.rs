//! What a tenant's programs have fetched: within the tenant's settings, and its memory on the host.
#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use forkvm::{FetchError, FetchHead, FetchRequest, Fetcher, Fetching, Reach};
use forkvm_fetch::{Client, Own, OwnSlot, Settings, Stats, Told};

use crate::tenants::kinds;
use crate::tenants::room::{Room, Taken};
use crate::tenants::settings::Values;
use crate::varnish::counters::count;

/// As the VCL says that was loaded last.
fn own() -> &'static OwnSlot {
    static OWN: OnceLock<OwnSlot> = OnceLock::new();
    OWN.get_or_init(OwnSlot::default)
}

/// Says how this Varnish is asked by programs that run in it: by a socket of Unix's or by TCP, where paths begin, and how many at
/// once may.
pub fn init_own(socket: &[u8], prefix: &[u8], most: i64) -> Result<(), String> {
    const MOST: usize = 10_000;
    let text = |bytes| str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8".to_owned());
    let socket = match text(socket)? {
        "" => None,
        path => Some(
            kinds::absolute(path)
                .map_err(|bad| format!("unix_socket {bad}"))?
                .into(),
        ),
    };
    let most = usize::try_from(most)
        .ok()
        .filter(|most| (1..=MOST).contains(most))
        .ok_or_else(|| format!("max_concurrent is {most}, must be 1 to {MOST}"))?;
    let prefix = text(prefix)?;
    let new = Own::new(socket, prefix, most).map_err(|bad| format!("http_prefix is {bad}"))?;
    own().set(new);
    Ok(())
}

/// A tenant's client.
pub struct Fetches {
    settings: Settings,
    /// Once what it needs could be read.
    client: OnceLock<Client>,
    /// Where requests' bodies count.
    bodies: Arc<Room>,
}

impl Fetches {
    /// One with these settings.
    pub fn new(values: &Values, bodies: &Arc<Room>) -> Arc<Self> {
        let settings = Settings {
            reach: Reach::new(values.allow_net.clone()),
            max_size: values.max_fetch_size,
            max_fetches: values.max_fetches as usize,
            max_time: values.max_fetch_time,
            ca_file: values.fetch_ca_file.as_ref().map(Into::into),
            unverified: values.fetch_unverified,
            own: own().clone(),
            told: |told| match told {
                Told::Asked => count(|counters| &counters.fetches),
                Told::Failed => count(|counters| &counters.fetch_failures),
            },
        };
        Arc::new(Self {
            settings,
            client: OnceLock::new(),
            bodies: bodies.clone(),
        })
    }

    /// Whether anything can be fetched, as its files are now. An error says what is wrong with them.
    pub fn check(&self) -> Result<(), String> {
        self.client().map(drop)
    }

    fn client(&self) -> Result<&Client, String> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let made = Client::new(self.settings.clone());
        let made = made.map_err(|what| format!("fetch_ca_file: {what}"))?;
        Ok(self.client.get_or_init(|| made))
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        let client = self.client.get();
        client.map(Client::stats).unwrap_or_default()
    }
}

impl Fetcher for Fetches {
    fn max_size(&self) -> u64 {
        self.settings.max_size
    }

    fn begin(&self, request: FetchRequest) -> Result<Box<dyn Fetching>, FetchError> {
        let mut body = Taken::nothing(&self.bodies);
        let len = request.body.as_ref().map_or(0, Vec::len) as u64;
        if !body.take_fair(len) {
            return Err(FetchError::NoRoom);
        }
        let client = self.client().map_err(FetchError::Tls)?;
        let begun = client.begin(request)?;
        Ok(Box::new(Counted { begun, _body: body }))
    }
}

/// One under way.
struct Counted {
    begun: Box<dyn Fetching>,
    /// What it has of the tenant's memory: redirects may need the body again.
    _body: Taken,
}

impl Fetching for Counted {
    fn head(&mut self, until: Instant) -> Result<Option<FetchHead>, FetchError> {
        self.begun.head(until)
    }

    fn read(&mut self, buf: &mut [u8], until: Instant) -> Result<Option<usize>, FetchError> {
        self.begun.read(buf, until)
    }
}
