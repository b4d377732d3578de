//! A fetch in one call, with the structures of the first KVM VMOD (docs/guest-abi.md): the program's processor waits until all of it
//! is there.

use crate::call::copied::Copied;
use crate::call::fetch::asked::{PIECE, body, fetcher, header, lines, target, wait};
use crate::call::fetch::failed::Failed;
use crate::call::fetch::kept::Kept;
use crate::call::http;
use crate::fetch::{FetchError, FetchHead, FetchRequest, Fetching};
use crate::header::Header;
use crate::machine::Machine;
use crate::memory::user::UserMemory;
use crate::request::Host;

/// `curl_op`: what is posted, and what has come.
const OP_LEN: usize = 176;
/// Of that the content type.
const TYPE: std::ops::Range<usize> = 48..OP_LEN;
/// `curl_fields`: header lines, and their lengths.
const FIELDS: usize = 12;
const FIELDS_LEN: usize = FIELDS * 8 + FIELDS * 2;
/// `curl_options`.
const OPTIONS_LEN: usize = 24;

/// What a form is posted as unless a program says otherwise, as libcurl does.
const FORM: &str = "application/x-www-form-urlencoded";

/// `curl_options`.
#[derive(Default)]
struct Options {
    follow: bool,
    /// The body is read and forgotten.
    dummy: bool,
    unverified: bool,
}

impl Options {
    fn read(machine: &Machine, address: u64) -> Result<Self, Failed> {
        if address == 0 {
            return Ok(Self::default());
        }
        let options = Copied::<OPTIONS_LEN>::read(&machine.memory, address)?;
        if options.u64(0) != 0 {
            let what = "the interface can't be chosen: the host's routes say by which it goes";
            return Err(FetchError::Bad(what.into()).into());
        }
        // Whether connections are made with TCP Fast Open, at 18, is a hint.
        Ok(Self {
            follow: options.flag(16),
            dummy: options.flag(17),
            unverified: options.flag(19),
        })
    }
}

/// `fetch`: (url, len, op, fields, options), and the same of a path of the program's own Varnish.
pub fn fetch(
    machine: &mut Machine,
    own: Option<usize>,
    host: &mut dyn Host,
) -> Result<i64, Failed> {
    let regs = machine.vcpu().regs();
    let fetcher = fetcher(host)?;
    let target = target(machine, (regs.rdi, regs.rsi), own)?;
    let op_at = regs.rdx;
    let op = Copied::<OP_LEN>::read(&machine.memory, op_at)?;
    // Nothing is fetched that could not be given.
    machine.memory.check_writable(op_at, OP_LEN as u64)?;
    for (address, len) in [(op.u64(16), op.u32(24)), (op.u64(32), op.u32(40))] {
        if address != 0 {
            machine.memory.check_writable(address, len.into())?;
        }
    }
    let mut headers = fields(machine, regs.rcx)?;
    let options = Options::read(machine, regs.r8)?;
    let posted = match op.u64(8) {
        0 => None,
        buffer => Some(body(machine, &*fetcher, (buffer, op.u32(4).into()))?),
    };
    let has_type = headers
        .iter()
        .any(|header| header.name.eq_ignore_ascii_case("content-type"));
    if posted.is_some() && !has_type {
        headers.push(posted_type(&op)?);
    }
    let mut begun = fetcher.begin(FetchRequest {
        target,
        method: if posted.is_some() { "POST" } else { "GET" }.into(),
        headers,
        body: posted,
        follow: options.follow,
        unverified: options.unverified,
        deadline: machine.deadline(),
    })?;
    let head = wait(machine, host, |until| begun.head(until))?;
    let kept = match op.u64(32) {
        _ if options.dummy => Kept::nowhere(),
        0 => Kept::mapped(machine, head.length)?,
        content => Kept::in_buffer(content, op.u32(40).into()),
    };
    let content = keep(machine, &mut *begun, kept, host)?;
    give(machine, op_at, op, &head, &content)?;
    Ok(0)
}

/// What is posted, where no header says it: what the program has written where it finds a response's type, or a form.
fn posted_type(op: &Copied<OP_LEN>) -> Result<Header<'static>, Failed> {
    let text = &op.0[TYPE];
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = match op.u32(44) as usize {
        0 => text,
        len => text.get(..len).unwrap_or(text),
    };
    match text.trim_ascii() {
        b"" => Ok(Header::new("Content-Type", FORM.as_bytes())),
        given => Ok(http::parse_header(&[b"Content-Type: ", given].concat())?),
    }
}

/// `curl_fields`: twelve pointers, and their lengths. Those without either are left out.
fn fields(machine: &Machine, address: u64) -> Result<Vec<Header<'static>>, Failed> {
    if address == 0 {
        return Ok(Vec::new());
    }
    let fields = Copied::<FIELDS_LEN>::read(&machine.memory, address)?;
    let mut headers = Vec::new();
    for index in 0..FIELDS {
        let (line, len) = (fields.u64(index * 8), fields.u16(FIELDS * 8 + index * 2));
        if line != 0 && len != 0 {
            headers.extend(header(machine, line, len.into())?);
        }
    }
    Ok(headers)
}

/// Copies a body into the guest as it comes.
fn keep(
    machine: &mut Machine,
    begun: &mut dyn Fetching,
    mut kept: Kept,
    host: &mut dyn Host,
) -> Result<Kept, Failed> {
    let mut piece = vec![0; PIECE];
    loop {
        let come = wait(machine, host, |until| begun.read(&mut piece, until));
        let put = come.and_then(|n| {
            kept.put(machine, &piece[..n])?;
            Ok(n)
        });
        match put {
            Ok(0) => return Ok(kept),
            Ok(_) => {}
            Err(failed) => {
                kept.discard(machine);
                return Err(failed);
            }
        }
    }
}

/// Tells the program what it has got.
fn give(
    machine: &mut Machine,
    op_at: u64,
    mut op: Copied<OP_LEN>,
    head: &FetchHead,
    content: &Kept,
) -> Result<(), Failed> {
    let text: Vec<u8> = lines(head).flatten().collect();
    let mut headers = match op.u64(16) {
        0 => Kept::mapped(machine, Some(text.len() as u64))?,
        buffer => Kept::in_buffer(buffer, op.u32(24).into()),
    };
    let mut room = headers.room;
    // Those that a buffer has room for.
    for line in lines(head).take_while(|line| {
        let len = line.len() as u64;
        let fits = len <= room;
        room = room.saturating_sub(len);
        fits
    }) {
        headers.put(machine, &line)?;
    }
    let content_type = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-type"))
        .map_or(&[][..], |header| &header.value);
    // With its NUL.
    let content_type = &content_type[..content_type.len().min(TYPE.len() - 1)];
    let len = |len: u64| u32::try_from(len).map_err(|_| Failed::NoMemory(len));
    op.put(0, &u32::from(head.status).to_le_bytes());
    op.put(16, &headers.address.to_le_bytes());
    op.put(24, &len(headers.len)?.to_le_bytes());
    op.put(32, &content.address.to_le_bytes());
    op.put(40, &len(content.len)?.to_le_bytes());
    op.put(44, &(content_type.len() as u32).to_le_bytes());
    op.put(TYPE.start, &[0; TYPE.end - TYPE.start]);
    op.put(TYPE.start, content_type);
    machine.memory.write(op_at, &op.0)?;
    Ok(())
}
