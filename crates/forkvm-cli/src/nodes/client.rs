//! One request to a node, over plain HTTP: Varnish speaks nothing else.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::config::{AutoHeaderValue, Config};
use ureq::http::Response;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport,
};
use ureq::{Agent, Error, SendBody};

use super::key::{Claim, Key};

/// Longest time to find a node's address, and to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Most of an answer's body that is read.
const MOST_ANSWER: u64 = 64 << 10;

/// A node's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body, as far as it came and is not too long.
    pub body: Vec<u8>,
}

/// Why there is none.
#[derive(Debug)]
pub enum Lost {
    /// No connection.
    Unreachable(String),
    /// A connection, and no answer in time.
    TimedOut,
    /// Something else than an answer, or only a part of one.
    Broken(String),
}

/// The SHA-256 of nothing.
pub const NO_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What is asked for: its header, and its name in what is signed.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    header: &'static str,
    action: &'static str,
}

impl Order {
    /// Another program; asked without a body, which programs there are.
    pub const UPDATE: Self = Self {
        header: "X-LiveUpdate",
        action: "update",
    };
    /// The program before.
    pub const ROLLBACK: Self = Self {
        header: "X-LiveRollback",
        action: "rollback",
    };
}

/// Whom to ask, and as whom.
pub struct Node<'a> {
    /// The node's address.
    pub url: &'a str,
    /// The tenant, which goes into the Host header.
    pub tenant: &'a str,
    /// What allows it.
    pub key: &'a Key,
    /// Longest time for all of a request.
    pub timeout: Duration,
}

impl Node<'_> {
    /// Asks without a body.
    pub fn get(&self, order: Order) -> Result<Answer, Lost> {
        let signature = self.sign("GET", order, "", NO_BODY)?;
        self.exchange(|agent| {
            let request = agent.get(self.url).header("Host", self.tenant);
            request.header(order.header, signature).call()
        })
    }

    /// Sends a body with this SHA-256 in hex to the node that calls itself so. There may be more headers.
    pub fn post(
        &self,
        order: Order,
        stamp: &str,
        sha256: &str,
        headers: &[(&str, &str)],
        body: &mut dyn Read,
    ) -> Result<Answer, Lost> {
        let signature = self.sign("POST", order, stamp, sha256)?;
        self.exchange(|agent| {
            let mut request = agent.post(self.url).header("Host", self.tenant);
            request = request.header(order.header, signature);
            for &(name, value) in headers {
                request = request.header(name, value);
            }
            request.send(SendBody::from_reader(&mut &mut *body))
        })
    }

    fn sign(&self, method: &str, order: Order, stamp: &str, sha256: &str) -> Result<String, Lost> {
        let claim = Claim {
            tenant: self.tenant,
            method,
            action: order.action,
            sha256,
            node: stamp,
        };
        let signed = self.key.sign(&claim);
        signed.map_err(|error| Lost::Broken(format!("the order can't be signed: {error}")))
    }

    fn exchange(
        &self,
        send: impl FnOnce(&Agent) -> Result<Response<ureq::Body>, Error>,
    ) -> Result<Answer, Lost> {
        let line = Arc::new(Line::default());
        let connector = ().chain(TcpConnector::default()).chain(Watch(line.clone()));
        let agent = Agent::with_parts(config(self.timeout), connector, DefaultResolver::default());
        let mut response = send(&agent).map_err(|error| line.lost(error))?;
        let mut body = Vec::new();
        // The status says what happened; a body that ends too early explains less.
        let _ = response
            .body_mut()
            .as_reader()
            .take(MOST_ANSWER)
            .read_to_end(&mut body);
        Ok(Answer {
            status: response.status().as_u16(),
            body,
        })
    }
}

fn config(timeout: Duration) -> Config {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        // The order is for the node and for nobody between.
        .proxy(None)
        .accept_encoding(AutoHeaderValue::None)
        .accept("application/json")
        .user_agent(concat!("forkvm/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_global(Some(timeout))
        .build()
}

/// What became of the connection.
#[derive(Debug, Default)]
struct Line {
    connected: AtomicBool,
    cut: AtomicBool,
}

impl Line {
    fn lost(&self, error: Error) -> Lost {
        if !self.connected.load(Ordering::Relaxed) {
            return Lost::Unreachable(match error {
                Error::HostNotFound => "no address for this name".into(),
                Error::Timeout(_) => "no connection in time".into(),
                Error::Io(error) => error.to_string(),
                other => other.to_string(),
            });
        }
        match error {
            Error::Timeout(_) => Lost::TimedOut,
            _ if self.cut.load(Ordering::Relaxed) => {
                Lost::Broken("it closed the connection before it had everything".into())
            }
            Error::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) =>
            {
                Lost::Broken("it closed the connection without an answer".into())
            }
            Error::Io(error) => Lost::Broken(error.to_string()),
            other => Lost::Broken(format!("no HTTP answer ({other})")),
        }
    }
}

/// Notes that there is a connection, and makes it a [`Patient`] one.
#[derive(Debug)]
struct Watch(Arc<Line>);

impl<T: Transport> Connector<T> for Watch {
    type Out = Patient<T>;

    fn connect(
        &self,
        _: &ConnectionDetails,
        chained: Option<T>,
    ) -> Result<Option<Self::Out>, Error> {
        self.0.connected.store(chained.is_some(), Ordering::Relaxed);
        Ok(chained.map(|inner| Patient {
            inner,
            line: self.0.clone(),
        }))
    }
}

/// A connection that is still read from when it can't be written to: who refuses a program (a wrong key, too many
/// bytes) may answer and close before it has it all.
#[derive(Debug)]
struct Patient<T> {
    inner: T,
    line: Arc<Line>,
}

impl<T: Transport> Transport for Patient<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.line.cut.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.inner.transmit_output(amount, timeout) {
            Err(Error::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                self.line.cut.store(true, Ordering::Relaxed);
                Ok(())
            }
            other => other,
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
