//! What is where on the dispatcher's pages, for its code and for the host.

use crate::arch::layout::{DISPATCHED_RCX, DISPATCHER, DISPATCHER_LEN, PAGE};

/// Bytes of the code, which comes first.
pub const CODE_LEN: u64 = 2 * PAGE;
/// Where in it the page is that both sides write: what may be answered, and how far that has come.
pub const STATE: u64 = CODE_LEN;
/// Where the queue is.
pub const QUEUE: u64 = STATE + PAGE;
/// Most calls in the queue: a page full.
pub const MOST_QUEUED: u32 = (PAGE / QUEUED_LEN) as u32;
/// Bytes of a call in the queue: its number, six arguments and what was answered.
pub const QUEUED_LEN: u64 = 64;
/// Where the bytes are that have come on the connection.
pub const INPUT: u64 = QUEUE + PAGE;
/// Most of them.
pub const INPUT_LEN: u64 = 4 * PAGE;
/// Where what calls in the queue read from memory is copied to, foremost what is sent.
pub const OUTPUT: u64 = INPUT + INPUT_LEN;
/// Bytes of that.
pub const OUTPUT_LEN: u64 = DISPATCHER_LEN - OUTPUT;

/// Virtual address of a part of it.
pub const fn address(part: u64) -> u64 {
    DISPATCHER + part
}

// What is where on the page of its state. First the registers of the call that is being answered.
pub const RAX: u64 = 0x00;
pub const RBX: u64 = 0x08;
pub const RCX: u64 = DISPATCHED_RCX - address(STATE);
pub const RDX: u64 = 0x18;
pub const RSI: u64 = 0x20;
pub const RDI: u64 = 0x28;
pub const R8: u64 = 0x30;
pub const R9: u64 = 0x38;
pub const R10: u64 = 0x40;
pub const R11: u64 = 0x48;
pub const RSP: u64 = 0x50;
/// How many they are.
pub const REGISTERS: usize = 11;
/// For RFLAGS alone.
pub const STACK_TOP: u64 = 0x80;
/// How many calls are in the queue.
pub const QUEUED: u64 = 0x80;
pub const OUTPUT_USED: u64 = 0x84;
pub const MAY_SEND: u64 = 0x88;
pub const INPUT_AT: u64 = 0x8c;
pub const INPUT_END: u64 = 0x90;
pub const CONNECTION: u64 = 0x94;
pub const FACTS: u64 = 0x98;
pub const READY: u64 = 0x9c;
pub const LISTENERS: u64 = 0xa0;
pub const NEXT_DESCRIPTOR: u64 = 0xb4;
pub const PEER_LEN: u64 = 0xb8;
pub const LOCAL_LEN: u64 = 0xbc;
pub const EPOLLS: u64 = 0xc0;
pub const WATCHED_FOR: u64 = 0xd0;
pub const WATCH_DATA: u64 = 0xd8;
pub const MASK: u64 = 0xe0;
pub const FUTEX_COUNT: u64 = 0xe8;
pub const PEER: u64 = 0x100;
pub const LOCAL: u64 = 0x120;
pub const CONSTANTS: u64 = 0x140;
pub const COUNTERS: u64 = 0x1c0;
pub const FUTEXES: u64 = 0x200;
pub const TABLE: u64 = 0x400;
pub const CLOSABLE: u64 = TABLE + NUMBERS as u64;
pub const STATUS_OF: u64 = CLOSABLE + 4 * MOST_CLOSABLE as u64;
/// End of all that.
pub const STATE_LEN: u64 = STATUS_OF + 8;
/// Where the `struct stat` is of the descriptor at [`STATUS_OF`].
pub const STATUS: u64 = STATE + 0x700;
/// Its length.
pub const STATUS_LEN: u64 = 144;

/// Numbers of system calls that are looked up.
pub const NUMBERS: usize = 512;
/// Most listening descriptors, and most of epoll_create(2).
pub const MOST_ALIKE: usize = 4;
/// Most answers that are the same each time.
pub const MOST_CONSTANTS: usize = 16;
/// Most descriptors of eventfd(2).
pub const MOST_COUNTERS: usize = 16;
/// Most descriptors that are closed without an exit.
pub const MOST_CLOSABLE: usize = 16;
/// Most futexes that are waited for.
pub const MOST_FUTEXES: usize = 64;
/// Most bytes of an address.
pub const ADDRESS_LEN: usize = 32;

/// A connection waits to be accepted.
pub const ACCEPTABLE: u32 = 1 << 0;
/// None does, at any of the listeners.
pub const NONE_WAITS: u32 = 1 << 1;
/// The listeners' accept(2) does not block.
pub const NEVER_BLOCKS: u32 = 1 << 2;
/// The connection is one of IP.
pub const INET: u32 = 1 << 3;
/// Of all else that is watched by epoll(7) nothing is ready.
pub const OTHERS_QUIET: u32 = 1 << 4;
/// The connection is watched.
pub const WATCHED: u32 = 1 << 5;
/// What it is ready for was not told yet.
pub const UNTOLD: u32 = 1 << 6;
/// All futexes are listed that are waited for.
pub const FUTEXES_KNOWN: u32 = 1 << 7;
/// No signal is pending.
pub const NO_SIGNALS: u32 = 1 << 8;

/// How a call is answered: what the table has of its number, or 0 where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// accept(2)
    Accept = 1,
    /// accept4(2)
    Accept4 = 2,
    /// read(2)
    Read = 3,
    /// recvfrom(2)
    Receive = 4,
    /// readv(2)
    ReadVector = 5,
    /// write(2)
    Write = 6,
    /// sendto(2)
    Send = 7,
    /// writev(2)
    WriteVector = 8,
    /// sendmsg(2)
    SendMessage = 9,
    /// setsockopt(2)
    SetOption = 10,
    /// epoll_ctl(2)
    EpollControl = 11,
    /// epoll_wait(2)
    EpollWait = 12,
    /// epoll_pwait(2)
    EpollPwait = 13,
    /// shutdown(2)
    Shutdown = 14,
    /// getsockname(2)
    LocalName = 15,
    /// getpeername(2)
    PeerName = 16,
    /// futex(2)
    Futex = 17,
    /// rt_sigprocmask(2)
    SignalMask = 18,
    /// set_robust_list(2)
    RobustList = 19,
    /// close(2)
    Close = 20,
    /// fstat(2)
    Status = 21,
    /// newfstatat(2)
    StatusAt = 22,
    /// By the constant with this number less, of [`Offer::constants`].
    Constant = 32,
}
