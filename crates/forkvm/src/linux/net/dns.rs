//! Questions of the Domain Name System, as a program's resolver asks them, and their answers (RFC 1035).

use std::net::IpAddr;

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE,
};

/// The port of name servers.
pub const PORT: u16 = 53;
/// The longest question that is looked at, as the longest without extensions (RFC 1035, 4.2.1).
const MOST: usize = 512;
/// How long an answer may be kept, in seconds. The host's resolver does not say.
const TIME_TO_LIVE: u32 = 30;

/// What a question is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// These of the name's addresses that were asked for.
    Addresses(&'a [IpAddr]),
    /// There is no such name.
    NoName,
    /// That could not be found out.
    Failed,
}

fn question(bytes: &[u8]) -> Option<Packet<'_>> {
    if bytes.len() > MOST {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    let asks = !packet.has_flags(PacketFlag::RESPONSE) && packet.opcode() == OPCODE::StandardQuery;
    (asks && packet.questions.len() == 1).then_some(packet)
}

/// The name that is asked for, and whether its addresses are. `None` where nothing is asked that could be answered.
pub fn asked(bytes: &[u8]) -> Option<(String, bool)> {
    let packet = question(bytes)?;
    let of = packet.questions.first()?;
    let internet = matches!(of.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    let addresses = matches!(of.qtype, QTYPE::TYPE(TYPE::A | TYPE::AAAA) | QTYPE::ANY);
    Some((of.qname.to_string(), internet && addresses))
}

/// The answer to a question. `None` where that is none.
pub fn answer(bytes: &[u8], answer: Answer<'_>) -> Option<Vec<u8>> {
    let asked = question(bytes)?;
    let mut reply = Packet::new_reply(asked.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *reply.rcode_mut() = match answer {
        Answer::Addresses(_) => RCODE::NoError,
        Answer::NoName => RCODE::NameError,
        Answer::Failed => RCODE::ServerFailure,
    };
    let of = asked.questions.first()?;
    if let Answer::Addresses(addresses) = answer {
        let records = addresses
            .iter()
            .filter_map(|ip| record(&of.qname, of.qtype, *ip));
        reply.answers = records.collect();
    }
    reply.questions = asked.questions.clone();
    reply.build_bytes_vec_compressed().ok()
}

fn record<'a>(name: &Name<'a>, kind: QTYPE, ip: IpAddr) -> Option<ResourceRecord<'a>> {
    let data = match (ip, kind) {
        (IpAddr::V4(ip), QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => RData::A(A {
            address: ip.to_bits(),
        }),
        (IpAddr::V6(ip), QTYPE::TYPE(TYPE::AAAA) | QTYPE::ANY) => RData::AAAA(AAAA {
            address: ip.to_bits(),
        }),
        _ => return None,
    };
    Some(ResourceRecord::new(
        name.clone(),
        CLASS::IN,
        TIME_TO_LIVE,
        data,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::net::names::MOST_ADDRESSES;
    use proptest::prelude::*;

    /// A question with this name, as `resolv.h` makes it.
    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes());
        }
        bytes.extend([0, 0, kind, 0, 1]);
        bytes
    }

    #[test]
    fn addresses_are_told() {
        let asks = query("Api.example", 1);
        assert_eq!(asked(&asks), Some(("Api.example".into(), true)));
        let ips = ["1.2.3.4", "2001:200::1"].map(|ip| ip.parse().unwrap());
        let reply = answer(&asks, Answer::Addresses(&ips)).unwrap();
        let packet = Packet::parse(&reply).unwrap();
        assert_eq!((packet.id(), packet.rcode()), (0x1234, RCODE::NoError));
        assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_AVAILABLE));
        assert_eq!(packet.answers.len(), 1);
        assert!(matches!(
            packet.answers[0].rdata,
            RData::A(A {
                address: 0x0102_0304
            })
        ));
        let reply = answer(&query("api.example", 28), Answer::Addresses(&ips)).unwrap();
        let packet = Packet::parse(&reply).unwrap();
        assert!(matches!(packet.answers[0].rdata, RData::AAAA(_)));
        let reply = answer(&asks, Answer::NoName).unwrap();
        assert_eq!(Packet::parse(&reply).unwrap().rcode(), RCODE::NameError);
    }

    /// An answer has room in what a resolver without extensions takes.
    #[test]
    fn answers_are_short() {
        let name = [
            &"a".repeat(63),
            &"b".repeat(63),
            &"c".repeat(63),
            &"d".repeat(59),
        ]
        .map(|s| s.as_str())
        .join(".");
        let ips = vec!["2001:200::1".parse().unwrap(); MOST_ADDRESSES];
        let reply = answer(&query(&name, 28), Answer::Addresses(&ips)).unwrap();
        assert!(reply.len() <= MOST, "{}", reply.len());
        assert_eq!(Packet::parse(&reply).unwrap().answers.len(), MOST_ADDRESSES);
    }

    #[test]
    fn other_kinds_have_no_addresses() {
        let mail = query("api.example", 15);
        assert_eq!(asked(&mail), Some(("api.example".into(), false)));
        let reply = answer(&mail, Answer::Addresses(&[])).unwrap();
        let packet = Packet::parse(&reply).unwrap();
        assert_eq!((packet.rcode(), packet.answers.len()), (RCODE::NoError, 0));
        // An answer, no question, and pointers in circles.
        assert_eq!(asked(&reply), None);
        assert_eq!(asked(b""), None);
        let mut circle = query("a", 1);
        circle[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(asked(&circle), None);
        assert_eq!(asked(&[0; 1000]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in any::<u8>()) {
            let _ = asked(&bytes);
            let _ = answer(&bytes, Answer::NoName);
            let mut asks = query("a.example", kind);
            let len = asks.len().min(bytes.len());
            asks[..len].iter_mut().zip(&bytes).for_each(|(byte, other)| *byte ^= other & 3);
            let _ = answer(&asks, Answer::Addresses(&["1.1.1.1".parse().unwrap()]));
        }
    }
}
