//! Datagrams to the outside and from there, and the name server that a program's resolver finds.

use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType};

use crate::linux::net::address::{Address, plain, shown};
use crate::linux::net::allowed::host_name;
use crate::linux::net::dns::{self, Answer};
use crate::linux::net::names::Found;
use crate::linux::net::outgoing::{Datagrams, Live, Question};
use crate::linux::net::packet::Packet;
use crate::linux::net::socket::{Family, Id, Message, State, cost};
use crate::linux::net::sockets::{MAX_BYTES, Sockets};

/// The longest there is.
const LONGEST: usize = 64 << 10;
/// Most datagrams that are looked at in one go.
const MOST: usize = 1024;

impl Sockets {
    /// Has a socket send to this address only from now on, and receive from there.
    pub fn aim_outside(&mut self, id: Id, to: SocketAddr) -> Result<(), Errno> {
        self.outgoing.live()?.datagrams.remove(&id);
        self.open_datagrams(id, to, Some(to))
    }

    /// Sends a datagram to an address that may be reached.
    pub fn send_outside(&mut self, id: Id, to: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let socket = self.get_mut(id)?;
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        if socket.write_shut {
            return Err(Errno::PIPE);
        }
        let aimed = match socket.state {
            State::Aimed(aimed) if aimed == to => Some(to),
            _ => None,
        };
        let live = self.outgoing.live()?;
        let fits = |of: &Datagrams| of.aimed == aimed && of.v6 == to.is_ipv6();
        if !live.datagrams.get(&id).is_some_and(fits) {
            live.datagrams.remove(&id);
            self.open_datagrams(id, to, aimed)?;
        }
        let live = self.outgoing.live()?;
        let of = live.datagrams.get(&id).ok_or(Errno::BADF)?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = match aimed {
            Some(_) => rustix::net::send(&of.socket.fd, bytes, flags),
            None => rustix::net::sendto(&of.socket.fd, bytes, flags, &to),
        };
        match sent {
            // What the network has no room for is lost, as anywhere on its way.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn open_datagrams(
        &mut self,
        id: Id,
        to: SocketAddr,
        aimed: Option<SocketAddr>,
    ) -> Result<(), Errno> {
        let socket = self.outgoing.socket(to, SocketType::DGRAM)?;
        if aimed.is_some() {
            rustix::net::connect(&socket.fd, &to)?;
            let own = rustix::net::getsockname(&socket.fd);
            let own = own.and_then(SocketAddr::try_from)?;
            let of = self.get_mut(id)?;
            let v6 = of.nature.family == Family::V6;
            of.local = Some(Address::Inet(shown(plain(own), v6)));
        }
        let live = self.outgoing.live()?;
        live.watch(id, &socket.fd)?;
        let of = Datagrams {
            socket,
            aimed,
            v6: to.is_ipv6(),
        };
        live.datagrams.insert(id, of);
        Ok(())
    }

    /// Receives what has come. True if that was anything.
    pub(super) fn pump_datagrams(&mut self, live: &mut Live, buf: &mut Vec<u8>) -> bool {
        let mut moved = false;
        live.datagrams.retain(|&id, of| {
            moved |= self.receive_datagrams(id, of, buf);
            self.get(id).is_ok()
        });
        moved
    }

    fn receive_datagrams(&mut self, id: Id, of: &mut Datagrams, buf: &mut Vec<u8>) -> bool {
        let mut looked = 0;
        while of.socket.readable && looked < MOST && self.has_room_for_datagram(id) {
            looked += 1;
            buf.resize(LONGEST, 0);
            match rustix::net::recvfrom(&of.socket.fd, &mut buf[..], RecvFlags::DONTWAIT) {
                Ok((len, _, from)) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    let bytes = buf.get(..len).unwrap_or_default();
                    match from {
                        Some(from) if of.aimed.is_some() || self.outgoing.lets_in(from) => {
                            self.bring_datagram(id, from, bytes);
                        }
                        _ => {}
                    }
                }
                Err(Errno::AGAIN) => {
                    of.socket.readable = false;
                    looked -= 1;
                }
                Err(Errno::INTR) => {}
                Err(errno) => {
                    if let Ok(socket) = self.get_mut(id) {
                        socket.error = Some(errno);
                        socket.arrived();
                    }
                }
            }
        }
        looked > 0
    }

    fn has_room_for_datagram(&self, id: Id) -> bool {
        let most = cost(LONGEST);
        let here = self.get(id).is_ok_and(|socket| socket.room() >= most);
        here && self.held.saturating_add(most) <= MAX_BYTES
    }

    fn bring_datagram(&mut self, id: Id, from: SocketAddr, bytes: &[u8]) {
        if let Ok(socket) = self.get_mut(id) {
            let v6 = socket.nature.family == Family::V6;
            let to = match &socket.local {
                Some(Address::Inet(local)) => plain(*local).ip(),
                _ => Ipv4Addr::UNSPECIFIED.into(),
            };
            let counted = socket.push_message(Message {
                bytes: bytes.to_vec(),
                from: Address::Inet(shown(from, v6)),
                rights: Vec::new(),
                packet: Some(Packet::from_outside(to)),
            });
            self.held = self.held.saturating_add(counted);
        }
    }

    /// A program has asked for a name. What is no question gets no answer.
    pub fn ask_name(&mut self, id: Id, of: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let Some((name, addresses)) = dns::asked(bytes) else {
            return Ok(());
        };
        let Some(name) = host_name(&name) else {
            self.reply(id, of, bytes, Answer::NoName);
            return Ok(());
        };
        if !self.outgoing.has_name(&name) {
            self.outgoing.tell(format!(
                "the network is denied: the program has asked for the name {name}; --allow-net={name} allows it"
            ));
            self.reply(id, of, bytes, Answer::NoName);
        } else if !addresses {
            self.reply(id, of, bytes, Answer::Addresses(&[]));
        } else if self.outgoing.live()?.names.ask(&name) {
            self.outgoing.keep_question(Question {
                socket: id,
                of,
                bytes: bytes.to_vec(),
                name,
            })?;
        } else {
            self.reply(id, of, bytes, Answer::Failed);
        }
        Ok(())
    }

    /// Answers the questions about a name.
    pub(super) fn answer(&mut self, live: &mut Live, found: &Found) {
        let told;
        let answer = match &found.addresses {
            None => Answer::Failed,
            Some(addresses) if addresses.is_empty() => Answer::NoName,
            Some(_) if live.questions.iter().all(|asked| asked.name != found.name) => return,
            Some(addresses) => {
                told = self.outgoing.told(&found.name, addresses);
                Answer::Addresses(&told)
            }
        };
        live.questions.retain(|question| {
            let answered = question.name == found.name;
            if answered {
                self.reply(question.socket, question.of, &question.bytes, answer);
            }
            !answered
        });
    }

    fn reply(&mut self, id: Id, from: SocketAddr, question: &[u8], answer: Answer<'_>) {
        if let Some(bytes) = dns::answer(question, answer)
            && self.has_room_for_datagram(id)
        {
            self.bring_datagram(id, from, &bytes);
        }
    }
}
