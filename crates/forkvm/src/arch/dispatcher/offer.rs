//! What the host says may be answered, as it lies on the page of the dispatcher's state.

use super::places::{
    ADDRESS_LEN, CLOSABLE, CONNECTION, CONSTANTS, COUNTERS, EPOLLS, FACTS, FUTEX_COUNT, FUTEXES,
    INPUT_END, LISTENERS, LOCAL, LOCAL_LEN, MASK, MAY_SEND, MOST_ALIKE, MOST_CLOSABLE,
    MOST_CONSTANTS, MOST_COUNTERS, MOST_FUTEXES, NEXT_DESCRIPTOR, NUMBERS, PEER, PEER_LEN, QUEUED,
    READY, STATE_LEN, STATUS_OF, TABLE, WATCH_DATA, WATCHED_FOR, Way,
};

/// Bytes of it.
const LEN: usize = (STATE_LEN - QUEUED) as usize;

/// What may be answered until the next exit. It starts with nothing.
#[derive(Debug, Clone)]
pub struct Offer {
    bytes: [u8; LEN],
    constants: usize,
}

impl Offer {
    /// Nothing.
    pub fn new() -> Self {
        let mut offer = Self {
            bytes: [0; LEN],
            constants: 0,
        };
        // No descriptor is negative.
        offer.put(CONNECTION, -1i32);
        offer.put(STATUS_OF, -1i32);
        for (list, most) in [
            (LISTENERS, MOST_ALIKE),
            (EPOLLS, MOST_ALIKE),
            (COUNTERS, MOST_COUNTERS),
            (CLOSABLE, MOST_CLOSABLE),
        ] {
            (0..most).for_each(|place| offer.put(list + 4 * place as u64, -1i32));
        }
        offer
    }

    /// Its bytes, from [`QUEUED`] on: nothing is queued.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn put<const N: usize>(&mut self, at: u64, value: impl ToBytes<N>) {
        self.put_bytes(at, &value.to_bytes());
    }

    fn put_bytes(&mut self, at: u64, bytes: &[u8]) {
        let start = (at - QUEUED) as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put_list(&mut self, at: u64, most: usize, descriptors: &[i32]) {
        for (place, &descriptor) in (0..).zip(descriptors.iter().take(most)) {
            self.put(at + 4 * place, descriptor);
        }
    }

    /// The call of this number is answered so.
    pub fn way(&mut self, number: usize, way: Way) {
        if number < NUMBERS {
            self.put(TABLE + number as u64, way as u8);
        }
    }

    /// It is answered by this each time.
    pub fn constant(&mut self, number: usize, value: i64) {
        if self.constants < MOST_CONSTANTS && number < NUMBERS {
            let place = self.constants as u64;
            self.put(CONSTANTS + 8 * place, value);
            self.put(TABLE + number as u64, Way::Constant as u8 + place as u8);
            self.constants += 1;
        }
    }

    /// These hold.
    pub fn facts(&mut self, facts: u32) {
        let at = (FACTS - QUEUED) as usize;
        for (byte, more) in self.bytes[at..].iter_mut().zip(facts.to_le_bytes()) {
            *byte |= more;
        }
    }

    /// The connection, if it was accepted by now.
    pub fn connection(&mut self, descriptor: i32) {
        self.put(CONNECTION, descriptor);
    }

    /// What is known of it, accepted or not.
    pub fn state_of_connection(&mut self, ready: u16, input: u32, may_send: u32) {
        self.put(READY, u32::from(ready));
        self.put(INPUT_END, input);
        self.put(MAY_SEND, may_send);
    }

    /// Its addresses, of which one that is too long is not told.
    pub fn addresses(&mut self, local: &[u8], peer: &[u8]) {
        for (at, len_at, bytes) in [(LOCAL, LOCAL_LEN, local), (PEER, PEER_LEN, peer)] {
            if bytes.len() <= ADDRESS_LEN {
                self.put_bytes(at, bytes);
                self.put(len_at, bytes.len() as u32);
            }
        }
    }

    /// The descriptors of listening sockets, and the one that a connection gets that is accepted.
    pub fn listeners(&mut self, descriptors: &[i32], next: i32) {
        self.put_list(LISTENERS, MOST_ALIKE, descriptors);
        self.put(NEXT_DESCRIPTOR, next);
    }

    /// The descriptors of epoll_create(2) that stand for the one that is answered for.
    pub fn epolls(&mut self, descriptors: &[i32]) {
        self.put_list(EPOLLS, MOST_ALIKE, descriptors);
    }

    /// What the connection is watched for there, and what is told with it.
    pub fn watch(&mut self, events: u32, data: u64) {
        self.put(WATCHED_FOR, events);
        self.put(WATCH_DATA, data);
    }

    /// What the task blocks of signals.
    pub fn mask(&mut self, mask: u64) {
        self.put(MASK, mask);
    }

    /// The futexes that are waited for, one for each waiter. False if they are too many.
    pub fn futexes(&mut self, addresses: &[u64]) -> bool {
        if addresses.len() > MOST_FUTEXES {
            return false;
        }
        for (place, &address) in (0..).zip(addresses) {
            self.put(FUTEXES + 8 * place, address);
        }
        self.put(FUTEX_COUNT, addresses.len() as u32);
        true
    }

    /// The descriptors whose end concerns nobody, of which the last ones count.
    pub fn closable(&mut self, descriptors: &[i32]) {
        let first = descriptors.len().saturating_sub(MOST_CLOSABLE);
        self.put_list(CLOSABLE, MOST_CLOSABLE, &descriptors[first..]);
    }

    /// The `struct stat` at its place is of this descriptor.
    pub fn status_of(&mut self, descriptor: i32) {
        self.put(STATUS_OF, descriptor);
    }

    /// The descriptors of eventfd(2) that are far from their end.
    pub fn counters(&mut self, descriptors: &[i32]) {
        self.put_list(COUNTERS, MOST_COUNTERS, descriptors);
    }
}

/// A number as it lies in memory.
trait ToBytes<const N: usize> {
    fn to_bytes(self) -> [u8; N];
}

macro_rules! to_bytes {
    ($($number:ty: $len:literal),*) => {
        $(impl ToBytes<$len> for $number {
            fn to_bytes(self) -> [u8; $len] {
                self.to_le_bytes()
            }
        })*
    };
}

to_bytes!(u8: 1, i32: 4, u32: 4, i64: 8, u64: 8);
