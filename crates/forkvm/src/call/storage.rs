//! Storage, as programs call it (docs/guest-abi.md): what a call's registers say, how its buffers get into the storage machine, and
//! how its result gets back. Both machines stand still meanwhile.

use std::time::Duration;

use crate::call::failed::failed;
use crate::call::stored::{
    Access, MOST_BUFFERS, MOST_TASK_DATA, NewTask, NotStored, Piece, StorageCall,
};
use crate::call::structure::{self, Place};
use crate::call::wait_point::WaitPoint;
use crate::failure::Cause;
use crate::machine::Machine;
use crate::memory::guest::{GuestMemory, NotRead};
use crate::memory::user::{BadAddress, UserMemory};
use crate::request::Host;

pub const STORAGE_ALLOW: u32 = 0x10707;
const STORAGE_CALLV: u32 = 0x10708;
const STORAGE_TASK: u32 = 0x10709;
const STORAGE_TASK_STOP: u32 = 0x1070A;

/// Most functions that a `main()` may allow.
pub const MOST_FUNCTIONS: usize = 1024;
/// Bytes of a `virtbuffer`: its address and its length.
const BUFFER_ENTRY: u64 = 16;
/// Each buffer is aligned to this in the storage machine, as malloc does.
const ALIGNED: u64 = 16;
/// So much is copied at a time: threads of the engine's users may have small stacks.
const PIECE: usize = 4 << 10;
/// Longest time until a task, and between two of its runs, in milliseconds: a year.
const LONGEST_TIME: u64 = 365 * 24 * 3600 * 1000;
/// What a call that failed returns.
const FAILED: i64 = -1;

/// Whether this is a hypercall to storage.
pub fn is_call(number: u32) -> bool {
    (STORAGE_CALLV..=STORAGE_TASK_STOP).contains(&number)
}

/// Carries out a hypercall to storage. `None` if it is another one. What fails is said in the program's log.
pub fn hypercall(
    number: u32,
    machine: &mut Machine,
    access: Option<Access<'_>>,
    host: &mut dyn Host,
) -> Option<i64> {
    let (name, result) = match number {
        STORAGE_CALLV => ("storage_callv", call(machine, access, host)),
        STORAGE_TASK => ("storage_task", task(machine, access)),
        STORAGE_TASK_STOP => {
            let number = machine.vcpu().regs().rdi;
            let stopped = access.is_some_and(|access| access.storage.stop_task(number));
            return Some(if stopped { 0 } else { FAILED });
        }
        _ => return None,
    };
    Some(result.unwrap_or_else(|why| failed(machine, host, name, &why, FAILED)))
}

/// `storage_callv(function, n, buffers, result, result_len)`.
fn call(
    machine: &mut Machine,
    access: Option<Access<'_>>,
    host: &mut dyn Host,
) -> Result<i64, NotStored> {
    let regs = machine.vcpu().regs();
    let access = access.ok_or(NotStored::None)?;
    let (count, entries) = (regs.rsi, regs.rdx);
    if count > MOST_BUFFERS {
        return Err(NotStored::Buffers(count));
    }
    let bad = |what, len| move |bad| NotStored::Bad { what, len, bad };
    let mut buffers = Vec::with_capacity(count as usize);
    // Several may be the same piece of memory, so that together they are as long as they like: to look at them takes time.
    let mut len = count * BUFFER_ENTRY;
    for nth in 0..count {
        let entry = entries.wrapping_add(nth * BUFFER_ENTRY);
        let read = |at| machine.memory.read_u64(at).map_err(bad("buffers", count));
        let buffer = Piece {
            address: read(entry)?,
            len: read(entry.wrapping_add(8))?,
        };
        len = len.saturating_add(aligned(buffer.len));
        buffers.push(buffer);
    }
    let most = access.storage.longest();
    if len > most {
        return Err(NotStored::Long { len, most });
    }
    for buffer in &buffers {
        let readable = machine.memory.check_readable(buffer.address, buffer.len);
        readable.map_err(bad("a buffer", buffer.len))?;
    }
    let result = Piece {
        address: regs.rcx,
        len: regs.r8,
    };
    machine
        .memory
        .check_writable(result.address, result.len)
        .map_err(bad("room for the result", result.len))?;
    let call = StorageCall {
        function: regs.rdi,
        buffers,
        len,
        result,
        loops: access.loops,
    };
    let deadline = machine.deadline();
    let len = access
        .storage
        .call(&call, &mut machine.memory, deadline, host)?;
    // It is at most `result.len`, which is the length of a piece of memory.
    Ok(len as i64)
}

/// `storage_task(function, data, len, start_ms, period_ms)`.
fn task(machine: &mut Machine, access: Option<Access<'_>>) -> Result<i64, NotStored> {
    let regs = machine.vcpu().regs();
    let access = access.ok_or(NotStored::None)?;
    let (len, start, period) = (regs.rdx, regs.rcx, regs.r8);
    if len > MOST_TASK_DATA || start > LONGEST_TIME || period > LONGEST_TIME {
        return Err(NotStored::BadTask);
    }
    let data = machine
        .memory
        .read_vec(regs.rsi, len)
        .map_err(|error| match error {
            NotRead::BadAddress(bad) => NotStored::Bad {
                what: "a task's data",
                len,
                bad,
            },
            NotRead::NoMemory(_) => NotStored::BadTask,
        })?;
    let task = NewTask {
        function: regs.rdi,
        data,
        start: Duration::from_millis(start),
        period: (period > 0).then(|| Duration::from_millis(period)),
        loops: access.loops,
    };
    access.storage.add_task(task).map(i64::from)
}

/// What a function of the storage's was given, as long as it runs.
#[derive(Debug)]
pub struct Given {
    /// User address of the array of buffers, or of a task's data.
    pub address: u64,
    /// Bytes that are to be freed, if it is in the heap.
    freed: Option<u64>,
}

impl Given {
    fn new(
        machine: &mut Machine,
        wait_point: &WaitPoint,
        len: u64,
    ) -> Result<(Self, Place), NotStored> {
        let place = structure::place(machine, &wait_point.layout, len)
            .map_err(|_| NotStored::NoRoom(len))?;
        let given = Self {
            address: place.address,
            freed: (len > structure::LONGEST_IN_AREA).then_some(len),
        };
        Ok((given, place))
    }

    /// Takes it away, once the function is done.
    pub fn free(self, machine: &mut Machine) {
        if let Some(len) = self.freed {
            machine
                .linux
                .unmap_for_engine(self.address, len, &mut machine.memory);
        }
    }
}

impl StorageCall {
    /// How many buffers there are, and the room for the result.
    pub fn arguments(&self, given: &Given) -> [u64; 6] {
        [
            self.buffers.len() as u64,
            given.address,
            self.result.len,
            0,
            0,
            0,
        ]
    }

    /// Copies the buffers into the storage machine: first the array of them, then what they hold.
    pub fn give(
        &self,
        caller: &GuestMemory,
        machine: &mut Machine,
        wait_point: &WaitPoint,
    ) -> Result<Given, NotStored> {
        let len = self.len;
        let (given, mut entry) = Given::new(machine, wait_point, len)?;
        let mut place = entry;
        place.skip(self.buffers.len() as u64 * BUFFER_ENTRY);
        for buffer in &self.buffers {
            let mut bytes = [0; BUFFER_ENTRY as usize];
            bytes[..8].copy_from_slice(&place.address.to_le_bytes());
            bytes[8..].copy_from_slice(&buffer.len.to_le_bytes());
            let mut copy = || -> Result<(), Cause> {
                entry.bytes(&mut machine.memory, &bytes)?;
                let mut at = place;
                in_pieces(buffer.len, |from, piece| {
                    caller
                        .read(buffer.address + from, piece)
                        .map_err(|bad| Cause::Machine(bad.to_string()))?;
                    at.bytes(&mut machine.memory, piece).map(|_| ())
                })
            };
            copy().map_err(|_| NotStored::NoRoom(len))?;
            place.skip(aligned(buffer.len));
        }
        Ok(given)
    }

    /// Copies a result from the storage machine to the caller, and gives the length that it has there. Without room for one none
    /// is wanted.
    pub fn take(
        &self,
        caller: &mut GuestMemory,
        storage: &GuestMemory,
        address: u64,
        len: u64,
    ) -> Result<u64, NotStored> {
        if self.result.len == 0 {
            return Ok(0);
        }
        let refused = NotStored::Result {
            len,
            room: self.result.len,
        };
        if len > self.result.len || storage.check_readable(address, len).is_err() {
            return Err(refused);
        }
        in_pieces(len, |from, piece| {
            storage.read(address + from, piece)?;
            caller.write(self.result.address + from, piece)
        })
        .map(|()| len)
        .map_err(|_: BadAddress| refused)
    }
}

impl NewTask {
    /// Copies the data into the storage machine.
    pub fn give(&self, machine: &mut Machine, wait_point: &WaitPoint) -> Result<Given, NotStored> {
        let len = self.data.len() as u64;
        let (given, mut place) = Given::new(machine, wait_point, len)?;
        place
            .bytes(&mut machine.memory, &self.data)
            .map_err(|_| NotStored::NoRoom(len))?;
        Ok(given)
    }

    /// The function's arguments.
    pub fn arguments(&self, given: &Given) -> [u64; 6] {
        [given.address, self.data.len() as u64, 0, 0, 0, 0]
    }
}

fn aligned(len: u64) -> u64 {
    len.checked_next_multiple_of(ALIGNED).unwrap_or(u64::MAX)
}

/// Has `copy` fill and use a buffer for one piece after the other, each with its offset.
fn in_pieces<E>(len: u64, mut copy: impl FnMut(u64, &mut [u8]) -> Result<(), E>) -> Result<(), E> {
    let mut buffer = [0; PIECE];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(PIECE as u64);
        copy(done, &mut buffer[..n as usize])?;
        done += n;
    }
    Ok(())
}
