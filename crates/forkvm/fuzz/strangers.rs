//! Fuzz targets of what reads a stranger's bytes: programs, headers, responses. What can be said of all input is asserted; that
//! nothing panics, or takes memory without end, is what the rest is for. `cargo test` has each go through its corpus
//! (`__fuzz__/` beside this file) and through some random inputs; `make fuzz` has libFuzzer look for others.

use std::iter;
use std::ops::Range;

use bolero::check;

use crate::call::http::{self, Exchange};
use crate::image::elf::{self, Image};
use crate::image::start;
use crate::linux::testing;
use crate::linux::{Call, Outcome};
use crate::request::{Header, Request};
use crate::server::response::{BadResponse, Decoder};

/// A program that loads has its memory within the limit, and is one that is run by nobody else's permissions.
#[test]
fn programs() {
    const LIMIT: u64 = 16 << 20;
    check!().for_each(|file| {
        let Ok(image) = Image::parse(file, LIMIT) else {
            return;
        };
        assert!(elf::check(file).is_ok());
        assert!(image.memory_len() <= LIMIT);
        assert!(image.is_code(image.entry));
        let mut last = 0;
        for run in &image.pages {
            assert!(run.addresses.start >= last && !run.addresses.is_empty());
            assert!(!(run.protection.write && run.protection.execute));
            last = run.addresses.end;
        }
        for segment in &image.segments {
            assert!(file.get(segment.file.clone()).is_some());
        }
        if let Some(main) = start::find_main(&image, file) {
            assert!(image.is_code(main));
        }
        image.symbols.describe(image.entry);
        let _ = image.symbols.find("my_backend");
    });
}

/// What a program says of headers is a message's, or refused: none of those that are kept could end a line or a head.
#[test]
fn headers() {
    check!().for_each(|lines| {
        let request = Request {
            headers: &[Header::new("Host", &b"a.example"[..])],
            ..Default::default()
        };
        let mut exchange = Exchange::new(&request);
        for (number, line) in lines.split(|&byte| byte == 0xff).enumerate() {
            let message = [0, 1, 1, 5][number % 4];
            let _ = exchange.change(message, line, number % 3 == 0);
            let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
            if let Some(found) = exchange.find(message, name) {
                http::parse_header(&found).unwrap();
            }
        }
        http::strip_connection_headers(&mut exchange.response_headers);
        http::strip_named_by_connection(&mut exchange.response_headers);
        for header in &exchange.response_headers {
            assert!(http::is_field_name(header.name.as_bytes()));
            assert!(http::is_field_value(&header.value));
            assert!(!http::is_connections(&header.name));
        }
    });
}

/// A server's response comes to the same in whatever pieces, and to no more than its limit.
#[test]
fn responses() {
    const MOST: u64 = 1000;
    check!().for_each(|input| {
        let [how, piece, bytes @ ..] = input else {
            return;
        };
        let whole = decoded(iter::once(bytes), how & 1 == 1, MOST);
        let pieces = bytes.chunks(usize::from(*piece).max(1));
        assert_eq!(decoded(pieces, how & 1 == 1, MOST), whole);
        if let Ok((head, body)) = whole {
            assert!(body.len() as u64 <= MOST);
            assert!((200..600).contains(&head.0));
            assert!(head.1.iter().all(|line| !line.contains(&b'\n')));
        }
    });
}

/// Status and lines of a response's head.
type Told = (u16, Vec<Vec<u8>>);

fn decoded<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    to_head: bool,
    most: u64,
) -> Result<(Told, Vec<u8>), BadResponse> {
    let mut decoder = Decoder::new(to_head, most);
    for piece in pieces {
        decoder.take(piece)?;
    }
    decoder.end()?;
    let head = decoder.head().ok_or(BadResponse::EndedEarly)?;
    let lines = head
        .headers
        .iter()
        .map(|header| [header.name.as_bytes(), b": ", &header.value].concat());
    let told = (head.status, lines.collect());
    Ok((told, decoder.drain_body()))
}

/// Any system calls, one after the other, of a program with handlers and of an unmodified one: each returns, waits or ends the program.
#[test]
fn system_calls() {
    check!().for_each(|input| {
        let [kind, input @ ..] = input else { return };
        let mut machine = match kind & 1 {
            0 => testing::Machine::new(Vec::new()),
            _ => testing::Machine::with_sockets(),
        };
        let half = input.len() / 2;
        let scratch = input.get(..half.min(4096)).unwrap_or_default();
        machine.put(0, scratch);
        let mut words = Words {
            bytes: &input[half..],
            memory: testing::SCRATCH..testing::SCRATCH + testing::SCRATCH_LEN,
        };
        while let Some(number) = words.next() {
            let args = [(); 6].map(|()| words.next().unwrap_or_default());
            let call = Call {
                number,
                args,
                rsp: testing::SCRATCH + 4096,
            };
            let testing::Machine {
                linux,
                memory,
                host,
                random,
            } = &mut machine;
            match linux.call(call, memory, host, random) {
                Outcome::Return(_) | Outcome::SetFsBase(_) | Outcome::SetGsBase(_) => {}
                _ => return,
            }
        }
    });
}

/// Registers, from few bytes: small numbers, places in a piece of memory and at its end, or any value.
pub struct Words<'a> {
    /// What they are made from.
    pub bytes: &'a [u8],
    /// The memory's addresses.
    pub memory: Range<u64>,
}

impl Iterator for Words<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let (&how, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(match how {
            0..=0xbf => how.into(),
            0xc0..=0xdf => self.memory.start + u64::from(how & 0x1f) * 32,
            0xe0..=0xe7 => self.memory.end - u64::from(how & 7),
            0xe8..=0xef => u64::MAX - u64::from(how & 7),
            0xf0..=0xf7 => 0x1_0000 | u64::from(how & 7),
            0xf8..=0xfb => {
                let (two, rest) = self.bytes.split_first_chunk::<2>()?;
                self.bytes = rest;
                u16::from_le_bytes(*two).into()
            }
            _ => {
                let (eight, rest) = self.bytes.split_first_chunk::<8>()?;
                self.bytes = rest;
                u64::from_le_bytes(*eight)
            }
        })
    }
}
