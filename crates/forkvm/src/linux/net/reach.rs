//! What rules of the network mean for who connects on a program's behalf.

use std::net::{IpAddr, SocketAddr};

use crate::linux::net::allowed::{Allowed, NetRule, Verdict};
use crate::linux::net::names;
use crate::linux::net::outgoing::is_of_this_host;

/// What a program may have connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach(Allowed);

impl Reach {
    /// What these rules allow. Nothing, unless there is one.
    pub fn new(rules: Vec<NetRule>) -> Self {
        Self(Allowed::new(rules))
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name, in lower case, may be looked up.
    pub fn has_name(&self, name: &str) -> bool {
        self.0.has_name(name)
    }

    /// Whether an address may be connected to, which is one of this name's if there is one.
    pub fn allows(&self, to: SocketAddr, name: Option<&str>) -> bool {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let names = name.map(str::to_owned).into_iter().collect();
        self.0.verdict(to, &names, is_of_this_host) == Verdict::Allowed
    }
}

/// The addresses of a name, as the host's own resolver has them (getaddrinfo(3)). It may take long, and can't be ended.
pub fn addresses(name: &str) -> Vec<IpAddr> {
    names::of_host(name)
}
