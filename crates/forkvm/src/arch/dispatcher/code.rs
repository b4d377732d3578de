//! The dispatcher's code: what it is told of its surroundings, and where it is.

use std::arch::global_asm;

use super::places::{
    ACCEPTABLE, CLOSABLE, CODE_LEN, CONNECTION, CONSTANTS, COUNTERS, EPOLLS, FACTS, FUTEX_COUNT,
    FUTEXES, FUTEXES_KNOWN, INET, INPUT, INPUT_AT, INPUT_END, LISTENERS, LOCAL, LOCAL_LEN, MASK,
    MAY_SEND, MOST_ALIKE, MOST_CLOSABLE, MOST_CONSTANTS, MOST_COUNTERS, MOST_FUTEXES, MOST_QUEUED,
    NEVER_BLOCKS, NEXT_DESCRIPTOR, NO_SIGNALS, NONE_WAITS, NUMBERS, OTHERS_QUIET, OUTPUT,
    OUTPUT_LEN, OUTPUT_USED, PEER, PEER_LEN, QUEUE, QUEUED, R8, R9, R10, R11, RAX, RBX, RCX, RDI,
    RDX, READY, RSI, RSP, STACK_TOP, STATE, STATUS, STATUS_LEN, STATUS_OF, TABLE, UNTOLD,
    WATCH_DATA, WATCHED, WATCHED_FOR, Way, address,
};
use crate::arch::stubs::{OUT_SYSCALL, PORT_SYSCALL};

global_asm!(
    include_str!("code.s"),
    state = const STATE,
    queue = const QUEUE - STATE,
    input = const INPUT - STATE,
    output = const OUTPUT - STATE,
    output_len = const OUTPUT_LEN,
    code_len = const CODE_LEN,
    rax = const RAX,
    rbx = const RBX,
    rcx = const RCX,
    rdx = const RDX,
    rsi = const RSI,
    rdi = const RDI,
    r8 = const R8,
    r9 = const R9,
    r10 = const R10,
    r11 = const R11,
    rsp = const RSP,
    stack_top = const STACK_TOP,
    queued = const QUEUED,
    most_queued = const MOST_QUEUED,
    output_used = const OUTPUT_USED,
    may_send = const MAY_SEND,
    input_at = const INPUT_AT,
    input_end = const INPUT_END,
    connection = const CONNECTION,
    facts = const FACTS,
    ready = const READY,
    listeners = const LISTENERS,
    next_descriptor = const NEXT_DESCRIPTOR,
    peer_len = const PEER_LEN,
    local_len = const LOCAL_LEN,
    epolls = const EPOLLS,
    watched_for = const WATCHED_FOR,
    watch_data = const WATCH_DATA,
    mask = const MASK,
    futex_count = const FUTEX_COUNT,
    peer = const PEER,
    local = const LOCAL,
    constants = const CONSTANTS,
    counters = const COUNTERS,
    futexes = const FUTEXES,
    table = const TABLE,
    numbers = const NUMBERS,
    most_alike = const MOST_ALIKE,
    most_constants = const MOST_CONSTANTS,
    most_counters = const MOST_COUNTERS,
    most_futexes = const MOST_FUTEXES,
    constant = const Way::Constant as u8,
    ways = const Way::StatusAt as u8 + 1,
    closable = const CLOSABLE,
    most_closable = const MOST_CLOSABLE,
    status_of = const STATUS_OF,
    status = const STATUS - STATE,
    status_len = const STATUS_LEN,
    nr_close = const libc::SYS_close,
    acceptable = const ACCEPTABLE,
    none_waits = const NONE_WAITS,
    never_blocks = const NEVER_BLOCKS,
    inet = const INET,
    others_quiet = const OTHERS_QUIET,
    watched = const WATCHED,
    untold = const UNTOLD,
    futexes_known = const FUTEXES_KNOWN,
    no_signals = const NO_SIGNALS,
    syscall = const PORT_SYSCALL,
    eagain = const libc::EAGAIN,
    nr_write = const libc::SYS_write,
    nr_accept4 = const libc::SYS_accept4,
    nr_setsockopt = const libc::SYS_setsockopt,
    nr_epoll_ctl = const libc::SYS_epoll_ctl,
    nr_epoll_wait = const libc::SYS_epoll_wait,
    nr_shutdown = const libc::SYS_shutdown,
    nr_futex = const libc::SYS_futex,
    nr_rt_sigprocmask = const libc::SYS_rt_sigprocmask,
    nr_set_robust_list = const libc::SYS_set_robust_list,
);

/// The code.
type Code = [u8; CODE_LEN as usize];

// SAFETY: all are defined above, the first so long by its `.org`, the others inside of it, in a section that nothing writes.
unsafe extern "C" {
    safe static forkvm_dispatcher: Code;
    safe static forkvm_dispatch_ring3: u8;
    safe static forkvm_dispatch_kept: u8;
    safe static forkvm_dispatch_done: u8;
    safe static forkvm_dispatch_out: u8;
}

/// The code, to be copied to its place.
pub fn code() -> &'static [u8] {
    &forkvm_dispatcher
}

fn place(label: &'static u8) -> u64 {
    let offset = (&raw const *label).addr() - (&raw const forkvm_dispatcher).addr();
    address(offset as u64)
}

/// Virtual addresses in the code.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Where `syscall` arrives in ring 3.
    pub ring3: u64,
    /// Behind the `out` of a call that it leaves to the host; a jump to where the program goes on stands there.
    pub behind_out: u64,
    /// From here on the call's registers are in its page.
    kept: u64,
    /// From here on they are the program's again.
    done: u64,
}

impl Addresses {
    /// Whether code at this address answers a call, whose registers are in the page.
    pub fn answers(&self, rip: u64) -> bool {
        (self.kept..self.done).contains(&rip)
    }
}

/// Where they are in every guest.
pub fn addresses() -> Addresses {
    Addresses {
        ring3: place(&forkvm_dispatch_ring3),
        behind_out: place(&forkvm_dispatch_out) + OUT_SYSCALL.len() as u64,
        kept: place(&forkvm_dispatch_kept),
        done: place(&forkvm_dispatch_done),
    }
}
