//! A request as programs see it: its texts, the structure `kvm_request` that points to them, and its body, written into
//! guest memory (docs/guest-abi.md).

use crate::arch::layout::{Layout, MMAP_WINDOW, REQUEST_AREA, REQUEST_AREA_LEN, monitor};
use crate::call::http::Exchange;
use crate::call::wait_point::Circumstances;
use crate::failure::Cause;
use crate::machine::Machine;
use crate::memory::guest::{GuestMemory, WriteError};
use crate::request::Header;

/// Bytes of `kvm_request` and of a header's entry in it (docs/guest-abi.md).
const REQUEST_STRUCT_LEN: u64 = 104;
const HEADER_ENTRY_LEN: u64 = 16;
/// Where the request starts in the request area, behind the entry block.
const STRUCT_OFFSET: u64 = 64;
/// What is longer is written to the heap.
pub const LONGEST_IN_AREA: u64 = REQUEST_AREA_LEN - STRUCT_OFFSET;
/// `kvm_request.info_flags`: a warm-up request.
const INFO_WARM_UP: u16 = 1;

/// User addresses of what was written.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    method: u64,
    pub url: u64,
    pub arg: u64,
    pub content_type: u64,
    headers: u64,
    pub failure: u64,
    pub body: u64,
    pub body_len: u64,
    pub request: u64,
    /// What is at `request`.
    pub structure: RequestStruct,
}

/// A `kvm_request`.
#[derive(Debug, Clone, Copy)]
pub struct RequestStruct(pub [u8; REQUEST_STRUCT_LEN as usize]);

/// Writes the request's texts, its structure and its body into the request area, or into the heap if they are too long
/// for it.
pub fn write(
    machine: &mut Machine,
    layout: &Layout,
    exchange: &Exchange<'_>,
    circumstances: Circumstances<'_>,
) -> Result<Written, Cause> {
    let pieces = Pieces::of(exchange, circumstances);
    let lengths = pieces.lengths()?;
    let place = place_for_request(machine, layout, pieces.len())?;
    let mut written = pieces.write(&mut machine.memory, place)?;
    written.structure = RequestStruct::new(
        &written,
        &lengths,
        circumstances.warm_up,
        [machine.random.number(), machine.random.number()],
    );
    machine
        .memory
        .write_physical(place.physical, &written.structure.0)
        .map_err(not_written)?;
    Ok(written)
}

/// What is written of a request.
struct Pieces<'a> {
    method: &'a [u8],
    url: &'a [u8],
    arg: &'a [u8],
    content_type: &'a [u8],
    headers: &'a [Header<'a>],
    failure: &'a [u8],
    body: &'a [u8],
}

/// The lengths that have 16 bits in the structure.
struct Lengths {
    /// Of the method, the URL, the argument and the content type.
    texts: [u16; 4],
    /// How many headers there are.
    headers: u16,
}

impl<'a> Pieces<'a> {
    fn of<'r: 'a>(exchange: &'a Exchange<'r>, circumstances: Circumstances<'a>) -> Self {
        let request = exchange.request;
        let content_type = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-type"))
            .map_or(&[][..], |header| &header.value);
        // `on_error` is told what failed, and gets no body: that may be as long as the request's memory.
        let (failure, body) = match circumstances.failure {
            Some(failure) => (failure, &[][..]),
            None => ("", request.body),
        };
        Self {
            method: exchange.method().as_bytes(),
            url: request.url,
            arg: request.arg,
            content_type,
            headers: request.headers,
            failure: failure.as_bytes(),
            body,
        }
    }

    fn lengths(&self) -> Result<Lengths, Cause> {
        let short = |len: usize| u16::try_from(len).map_err(|_| Cause::TooLarge(len as u64));
        Ok(Lengths {
            texts: [
                short(self.method.len())?,
                short(self.url.len())?,
                short(self.arg.len())?,
                short(self.content_type.len())?,
            ],
            headers: short(self.headers.len())?,
        })
    }

    /// Bytes of the structure and the headers' entries behind it.
    fn structures_len(&self) -> u64 {
        REQUEST_STRUCT_LEN + HEADER_ENTRY_LEN * self.headers.len() as u64
    }

    /// Bytes of all of it.
    fn len(&self) -> u64 {
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.name.len() + header.value.len() + 3)
            .sum();
        let texts = [
            self.method,
            self.url,
            self.arg,
            self.content_type,
            self.failure,
        ];
        let texts: usize = texts.iter().map(|text| text.len() + 1).sum();
        self.structures_len() + (headers + texts + self.body.len()) as u64
    }

    /// Writes all but the structure itself, which is written when what it points to has its places.
    fn write(&self, memory: &mut GuestMemory, start: Place) -> Result<Written, Cause> {
        let mut entry = start;
        entry.skip(REQUEST_STRUCT_LEN);
        let headers = entry.address;
        let mut place = start;
        place.skip(self.structures_len());
        let method = place.text(memory, &[self.method])?;
        let url = place.text(memory, &[self.url])?;
        let arg = place.text(memory, &[self.arg])?;
        let content_type = place.text(memory, &[self.content_type])?;
        for header in self.headers {
            let name = header.name.as_bytes();
            let line = place.text(memory, &[name, b": ", &header.value])?;
            let len = name.len() + 2 + header.value.len();
            let mut bytes = [0u8; HEADER_ENTRY_LEN as usize];
            bytes[..8].copy_from_slice(&line.to_le_bytes());
            bytes[8..12].copy_from_slice(&(name.len() as u32).to_le_bytes());
            bytes[12..].copy_from_slice(&(len as u32).to_le_bytes());
            entry.bytes(memory, &bytes)?;
        }
        Ok(Written {
            method,
            url,
            arg,
            content_type,
            headers,
            failure: place.text(memory, &[self.failure])?,
            body: place.bytes(memory, self.body)?,
            body_len: self.body.len() as u64,
            request: start.address,
            structure: RequestStruct([0; REQUEST_STRUCT_LEN as usize]),
        })
    }
}

impl RequestStruct {
    fn new(written: &Written, lengths: &Lengths, warm_up: bool, random: [u64; 2]) -> Self {
        let mut new = Self([0; REQUEST_STRUCT_LEN as usize]);
        for (at, value) in [
            (0, written.method),
            (8, written.url),
            (16, written.arg),
            (24, written.content_type),
            (40, written.body),
            (48, written.body_len),
            (56, written.headers),
            (72, random[0]),
            (80, random[1]),
        ] {
            new.put(at, &value.to_le_bytes());
        }
        for (at, value) in [32, 34, 36, 38].into_iter().zip(lengths.texts) {
            new.put(at, &value.to_le_bytes());
        }
        new.put(64, &lengths.headers.to_le_bytes());
        let info = if warm_up { INFO_WARM_UP } else { 0 };
        new.put(66, &info.to_le_bytes());
        new
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The same for what a request brings: it has it until its end.
pub fn place_for_request(machine: &mut Machine, layout: &Layout, len: u64) -> Result<Place, Cause> {
    let place = place(machine, layout, len)?;
    if len > LONGEST_IN_AREA {
        machine.request_memory.push((place.address, len));
    }
    Ok(place)
}

/// A place for `len` bytes: the request area, else fresh pages of the heap.
pub fn place(machine: &mut Machine, layout: &Layout, len: u64) -> Result<Place, Cause> {
    if len <= LONGEST_IN_AREA {
        let physical = REQUEST_AREA + STRUCT_OFFSET;
        return Ok(Place {
            address: monitor(physical),
            physical,
        });
    }
    let address = machine
        .linux
        .map_for_engine(len, &mut machine.memory)
        .ok_or(Cause::TooLarge(len))?;
    Ok(Place {
        address,
        physical: layout.heap.start + (address - MMAP_WINDOW),
    })
}

/// Why a request could not be written.
pub fn not_written(error: WriteError) -> Cause {
    match error {
        WriteError::OverLimit => Cause::MemoryLimit,
        WriteError::OutOfRange(bug) => Cause::Machine(bug.to_string()),
        WriteError::NoRecord(error) => Cause::Machine(error.to_string()),
    }
}

/// A run of guest memory being filled.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub address: u64,
    physical: u64,
}

impl Place {
    /// Leaves room.
    pub fn skip(&mut self, len: u64) {
        (self.address, self.physical) = (self.address + len, self.physical + len);
    }

    /// Writes bytes and returns their user address.
    pub fn bytes(&mut self, memory: &mut GuestMemory, bytes: &[u8]) -> Result<u64, Cause> {
        let address = self.address;
        memory
            .write_physical(self.physical, bytes)
            .map_err(not_written)?;
        self.skip(bytes.len() as u64);
        Ok(address)
    }

    /// Writes pieces as one NUL-terminated text and returns its user address.
    fn text(&mut self, memory: &mut GuestMemory, pieces: &[&[u8]]) -> Result<u64, Cause> {
        let address = self.address;
        for piece in pieces {
            self.bytes(memory, piece)?;
        }
        self.bytes(memory, &[0])?;
        Ok(address)
    }
}
