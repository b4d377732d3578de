//! A fuzz target (see [`crate::fuzz`]): hypercalls with any registers and any memory.

use std::sync::{Mutex, PoisonError};

use bolero::check;
use kvm_bindings::kvm_regs;

use crate::call::http;
use crate::call::hypercall::{self, Body, Outcome};
use crate::fork::tests::testing::frozen;
use crate::fork::*;
use crate::fuzz::Words;

/// The numbers of docs/guest-abi.md, those that are not served among them.
const NUMBERS: [u32; 46] = [
    0xffff, 0x10000, 0x10001, 0x10002, 0x10005, 0x10010, 0x10011, 0x10012, 0x10013, 0x10020,
    0x10021, 0x10022, 0x10023, 0x10030, 0x10031, 0x10032, 0x10033, 0x10034, 0x10035, 0x10500,
    0x10700, 0x10703, 0x10706, 0x10707, 0x10708, 0x10709, 0x1070a, 0x10710, 0x10711, 0x10712,
    0x10713, 0x10a00, 0x20000, 0x20001, 0x7f000, 0x7fdeb, 0x7f7f7, 0x10010, 0x10010, 0x10020,
    0x10021, 0x10022, 0x20010, 0x20011, 0x20012, 0x20013,
];
/// Where the input's first half is put, below the frozen stack pointer.
const BELOW: u64 = 0x8000;
/// Comparing all memory takes its time.
const COMPARED: u32 = 64;

/// Whatever a program asks, the host goes on, what comes out of it as a response is one, and a reset undoes it.
#[test]
fn hypercalls() {
    let Some(master) = frozen("hostile", |config| config.limits.max_memory = 64 << 20) else {
        return;
    };
    let stack = master.wait_point.layout.stack_window();
    let scratch = (master.wait_point.regs.rsp - BELOW) & !(PAGE - 1);
    let fork = Mutex::new((Fork::new(master).unwrap(), 0));
    check!().for_each(|input| {
        let mut fork = fork.lock().unwrap_or_else(PoisonError::into_inner);
        let (fork, inputs) = &mut *fork;
        let half = input.len() / 2;
        let memory = input.get(..half.min(4096)).unwrap_or_default();
        fork.machine.memory.write(scratch, memory).unwrap();
        let request = Request {
            url: b"/fuzz",
            ..Default::default()
        };
        let mut exchange = Exchange::new(&request);
        let mut words = Words {
            bytes: &input[half..],
            memory: scratch..stack.end,
        };
        while let Some(number) = words.next() {
            let number = NUMBERS
                .get(usize::try_from(number).unwrap_or(usize::MAX))
                .map_or(number as u32, |number| *number);
            let [rdi, rsi, rdx, rcx, r8, r9] = [(); 6].map(|()| words.next().unwrap_or_default());
            fork.machine.vcpu().set_regs(kvm_regs {
                rdi,
                rsi,
                rdx,
                rcx,
                r8,
                r9,
                rsp: scratch + 4096,
                ..Default::default()
            });
            let machine = &mut fork.machine;
            match hypercall::during_request(number, machine, &mut exchange, None, &mut Quiet) {
                Ok(Outcome::Return(_)) => {}
                Ok(Outcome::Respond(response)) => {
                    assert!((200..600).contains(&response.status));
                    for header in &response.headers {
                        assert!(http::is_field_name(header.name.as_bytes()));
                        assert!(http::is_field_value(&header.value));
                    }
                    if let Body::Whole(address, len) = response.body {
                        let mut buf = [0; 100];
                        let read = fork.read_piece((address, len), 0, &mut buf);
                        assert_eq!(read as u64, len.min(100));
                    }
                    break;
                }
                Err(_) => break,
            }
        }
        fork.reset().unwrap();
        *inputs += 1;
        if *inputs % COMPARED == 0 {
            assert_eq!(fork.differing_pages(), 0);
        }
    });
}
