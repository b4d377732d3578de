//! What a handler of a signal finds on its stack, and what rt_sigreturn(2) takes back from there: `struct rt_sigframe` of
//! x86-64 (arch/x86/include/asm/sigframe.h), with `ucontext`, `sigcontext` and `siginfo` in it. glibc, musl, Go's runtime
//! and debuggers know this layout.

use kvm_bindings::kvm_regs;

use crate::arch::context::{VECTOR_LEN, VectorFormat};
use crate::arch::regs::user_flags;
use crate::arch::tables::{USER_CODE, USER_DATA};
use crate::linux::abi::{Layout, USER_END, field_u32, field_u64};
use crate::linux::tasks::delivery::{Handling, SA_RESTORER};
use crate::linux::tasks::pending::INFO_LEN;
use crate::linux::tasks::signals::{SS_ONSTACK, stack_bytes, stack_of};
use crate::linux::tasks::task_signals::AltStack;
use crate::memory::user::{BadAddress, UserMemory};

/// The return address, then `ucontext` and `siginfo`.
const CONTEXT: usize = 8;
const INFO: usize = CONTEXT + 304;
const LEN: usize = INFO + INFO_LEN;
/// Inside of `ucontext`: `stack_t`, `sigcontext`, the blocked signals.
const STACK: usize = CONTEXT + 16;
const REGS: usize = CONTEXT + 40;
const MASK: usize = CONTEXT + 296;
/// Inside of `sigcontext`, after the general registers.
const SEGMENTS: usize = REGS + 144;
const ERROR: usize = REGS + 152;
const VECTOR_POINTER: usize = REGS + 184;

/// `uc_flags`: there is an XSAVE image; SS is valid, and to be restored as it is.
const FLAGS: u64 = 1 | 2 | 4;
/// What the x86-64 ABI lets a function use below its stack pointer.
const RED_ZONE: u64 = 128;

/// In the part of an XSAVE image that the processor leaves alone (`struct _fpx_sw_bytes`): that it is one, and how long.
const SOFTWARE: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
/// Behind it.
const MAGIC2: u32 = 0x4650_5845;
/// The part that FXSAVE knows, and where XSTATE_BV and XCOMP_BV follow (Intel SDM Vol. 1, 13.4).
const LEGACY: usize = 512;
const XSTATE_BV: usize = LEGACY;
const HEADER_END: usize = LEGACY + 64;
const MXCSR: usize = 24;
/// Direction, trap, resume and alignment-check flags, which no handler starts with: of these DF and TF.
const CLEARED: u64 = 1 << 10 | 1 << 8;

/// What a processor said about the fault that is the signal's reason; zeros if none is.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultDetails {
    /// Error code.
    pub error: u64,
    /// Vector.
    pub vector: u64,
    /// CR2.
    pub address: u64,
}

/// Writes the frame, and gives the registers with which the handler starts.
pub fn push(
    memory: &mut dyn UserMemory,
    regs: &kvm_regs,
    handling: &Handling,
    stack: Option<AltStack>,
    (vector, format): (&[u8; VECTOR_LEN], VectorFormat),
    fault: FaultDetails,
) -> Result<kvm_regs, BadAddress> {
    let bad = BadAddress(regs.rsp);
    let action = &handling.action;
    if action.flags & SA_RESTORER == 0 {
        return Err(bad);
    }
    let top = match stack {
        Some(stack) if handling.on_stack() && !stack.holds(regs.rsp) => {
            stack.start.saturating_add(stack.len)
        }
        _ => regs.rsp.wrapping_sub(RED_ZONE),
    };
    let vector_len = format.len as u64 + 4;
    let vector_at = top.checked_sub(vector_len).ok_or(bad)? & !63;
    // As if called: a return address is on a stack of whole 16 bytes.
    let at = vector_at.checked_sub(LEN as u64).ok_or(bad)? & !15;
    let at = at.checked_sub(8).ok_or(bad)?;
    if let Some(stack) = stack
        && stack.holds(top)
        && at < stack.start
    {
        // It would be written beyond the alternate stack.
        return Err(bad);
    }
    memory.write(vector_at, &vector_image(vector, format))?;
    let frame = general(regs)
        .u64(0, action.restorer)
        .u64(CONTEXT, FLAGS)
        .bytes(STACK, stack_bytes(stack, regs.rsp).done())
        .u64(SEGMENTS, u64::from(USER_CODE) | u64::from(USER_DATA) << 48)
        .u64(ERROR, fault.error)
        .u64(ERROR + 8, fault.vector)
        .u64(ERROR + 16, handling.mask)
        .u64(ERROR + 24, fault.address)
        .u64(VECTOR_POINTER, vector_at)
        .u64(MASK, handling.mask)
        .bytes(INFO, &handling.signal.info);
    memory.write(at, frame.done())?;
    Ok(kvm_regs {
        rip: action.handler,
        rsp: at,
        rdi: handling.signal.number as u64,
        rsi: at + INFO as u64,
        rdx: at + CONTEXT as u64,
        rax: 0,
        rflags: regs.rflags & !CLEARED,
        ..*regs
    })
}

/// Where the registers are in `sigcontext`.
fn general(regs: &kvm_regs) -> Layout<LEN> {
    let values = [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.rflags,
    ];
    values
        .iter()
        .enumerate()
        .fold(Layout::new(), |layout, (nth, &value)| {
            layout.u64(REGS + 8 * nth, value)
        })
}

fn vector_image(vector: &[u8; VECTOR_LEN], format: VectorFormat) -> Vec<u8> {
    let len = format.len.min(VECTOR_LEN);
    let mut image = vector[..len].to_vec();
    let software = Layout::<48>::new()
        .u32(0, MAGIC1)
        .u32(4, len as u32 + 4)
        .u64(8, format.features)
        .u32(16, len as u32);
    image[SOFTWARE..LEGACY].copy_from_slice(software.done());
    image.extend_from_slice(&MAGIC2.to_le_bytes());
    image
}

/// What a task goes on with after its handler.
#[derive(Debug)]
pub struct Popped {
    /// Its registers.
    pub regs: kvm_regs,
    /// What it blocks.
    pub mask: u64,
    /// Its alternate stack, if the frame has one that makes sense.
    pub stack: Option<Option<AltStack>>,
    /// Its vector state; without one it is as after a start.
    pub vector: Option<Box<[u8; VECTOR_LEN]>>,
}

/// Reads the frame back that [`push`] has written, whatever it is by now. `regs` are those at rt_sigreturn(2): the handler's
/// return has taken the first eight bytes off the stack.
pub fn pop(
    memory: &dyn UserMemory,
    regs: &kvm_regs,
    format: VectorFormat,
) -> Result<Popped, BadAddress> {
    let at = regs.rsp.wrapping_sub(8);
    let mut frame = [0; INFO];
    memory.read(at, &mut frame)?;
    let field = |nth: usize| field_u64(&frame, REGS + 8 * nth);
    let regs = kvm_regs {
        r8: field(0),
        r9: field(1),
        r10: field(2),
        r11: field(3),
        r12: field(4),
        r13: field(5),
        r14: field(6),
        r15: field(7),
        rdi: field(8),
        rsi: field(9),
        rbp: field(10),
        rbx: field(11),
        rdx: field(12),
        rax: field(13),
        rcx: field(14),
        rsp: field(15),
        rip: field(16),
        rflags: user_flags(field(17)),
    };
    if regs.rip >= USER_END {
        return Err(BadAddress(regs.rip));
    }
    let vector = match field_u64(&frame, VECTOR_POINTER) {
        0 => None,
        address => Some(read_vector(memory, address, format)?),
    };
    let stack = frame[STACK..].first_chunk().map(|bytes: &[u8; 24]| {
        let mut bytes = *bytes;
        // Whether it was in use is not for the program to say.
        bytes[8] &= !(SS_ONSTACK as u8);
        stack_of(&bytes)
    });
    Ok(Popped {
        regs,
        mask: field_u64(&frame, MASK),
        stack: stack.and_then(Result::ok),
        vector,
    })
}

/// An image that the processor takes, whatever the program has made of it.
fn read_vector(
    memory: &dyn UserMemory,
    address: u64,
    format: VectorFormat,
) -> Result<Box<[u8; VECTOR_LEN]>, BadAddress> {
    let mut image = Box::new([0; VECTOR_LEN]);
    let len = format.len.min(VECTOR_LEN);
    memory.read(address, &mut image[..LEGACY])?;
    let software = |offset| field_u32(&image[..], SOFTWARE + offset);
    let whole = software(0) == MAGIC1 && software(16) as usize == len && {
        let mut end = [0; 4];
        let behind = address.wrapping_add(len as u64);
        memory.read(behind, &mut end).is_ok() && u32::from_le_bytes(end) == MAGIC2
    };
    let features = if whole {
        memory.read(address, &mut image[..len])?;
        field_u64(&image[..], XSTATE_BV) & format.features
    } else {
        // x87 and SSE, as FXSAVE has them.
        0b11
    };
    image[XSTATE_BV..HEADER_END].fill(0);
    image[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&features.to_le_bytes());
    image[SOFTWARE..LEGACY].fill(0);
    let mxcsr = field_u32(&image[..], MXCSR) & format.mxcsr_mask;
    image[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::regs::{RFLAGS, RFLAGS_USER};
    use crate::linux::tasks::pending::{SI_USER, Signal};
    use crate::linux::tasks::signals::Action;
    use crate::linux::testing::{SCRATCH, TestMemory};

    const FORMAT: VectorFormat = VectorFormat {
        len: 832,
        features: 7,
        mxcsr_mask: 0xffff,
    };

    fn handling(flags: u64) -> Handling {
        Handling {
            signal: Signal::by_process(10, SI_USER),
            action: Action {
                handler: 0x40_1000,
                flags: flags | SA_RESTORER,
                restorer: 0x40_2000,
                mask: 0,
            },
            mask: 0x55,
            again: None,
        }
    }

    fn regs() -> kvm_regs {
        kvm_regs {
            rax: 1,
            rbx: 2,
            rcx: 3,
            r15: 15,
            rip: 0x40_0000,
            rsp: SCRATCH + 0x8123,
            rflags: 0x202 | CLEARED,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_pushed_comes_back() {
        let mut memory = TestMemory::new(SCRATCH, 0x10000);
        let mut vector = [0; VECTOR_LEN];
        vector[MXCSR] = 0x80;
        vector[160] = 7;
        vector[XSTATE_BV] = 3;
        let started = push(
            &mut memory,
            &regs(),
            &handling(0),
            None,
            (&vector, FORMAT),
            FaultDetails::default(),
        )
        .unwrap();
        assert_eq!(started.rsp % 16, 8);
        assert!(started.rsp + LEN as u64 <= regs().rsp - RED_ZONE);
        assert_eq!((started.rip, started.rdi), (0x40_1000, 10));
        assert_eq!(started.rflags & CLEARED, 0);
        let returned = kvm_regs {
            rsp: started.rsp + 8,
            ..started
        };
        let popped = pop(&memory, &returned, FORMAT).unwrap();
        let expected = kvm_regs {
            rflags: regs().rflags & RFLAGS_USER | RFLAGS,
            ..regs()
        };
        assert_eq!(popped.regs, expected);
        assert_eq!((popped.mask, popped.stack), (0x55, Some(None)));
        assert_eq!(popped.vector.unwrap()[..], vector[..]);
    }

    #[test]
    fn what_a_program_makes_of_it_does_no_harm() {
        let mut memory = TestMemory::new(SCRATCH, 0x10000);
        let vector = [0; VECTOR_LEN];
        let details = FaultDetails::default();
        let started = push(
            &mut memory,
            &regs(),
            &handling(0),
            None,
            (&vector, FORMAT),
            details,
        )
        .unwrap();
        let mut bytes = [0xff; INFO];
        let at = field_at(&memory, started.rsp + VECTOR_POINTER as u64);
        bytes[REGS + 128..REGS + 136].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes[VECTOR_POINTER..VECTOR_POINTER + 8].copy_from_slice(&at.to_le_bytes());
        memory.write(started.rsp, &bytes).unwrap();
        memory.write(at, &[0xff; LEGACY]).unwrap();
        let returned = kvm_regs {
            rsp: started.rsp + 8,
            ..started
        };
        let popped = pop(&memory, &returned, FORMAT).unwrap();
        assert_eq!(popped.regs.rflags & !(RFLAGS_USER | RFLAGS), 0);
        let vector = popped.vector.unwrap();
        assert_eq!(field_u32(&vector[..], MXCSR), 0xffff);
        assert_eq!(field_u64(&vector[..], XSTATE_BV), 3);
        assert_eq!(vector[XSTATE_BV + 8..HEADER_END], [0; 56]);
        // A place that is none of the program's.
        bytes[REGS + 128..REGS + 136].copy_from_slice(&USER_END.to_le_bytes());
        memory.write(started.rsp, &bytes).unwrap();
        assert!(pop(&memory, &returned, FORMAT).is_err());
        let nowhere = kvm_regs { rsp: 0, ..started };
        assert!(pop(&memory, &nowhere, FORMAT).is_err());
    }

    fn field_at(memory: &TestMemory, address: u64) -> u64 {
        let mut bytes = [0; 8];
        memory.read(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn handlers_that_ask_for_it_have_a_stack_of_their_own() {
        let mut memory = TestMemory::new(SCRATCH, 0x10000);
        let stack = |len| {
            Some(AltStack {
                start: SCRATCH + 0x1000,
                len,
                autodisarm: false,
            })
        };
        let vector = [0; VECTOR_LEN];
        let mut start = |flags, stack: Option<AltStack>| {
            let of = (&vector, FORMAT);
            let details = FaultDetails::default();
            push(&mut memory, &regs(), &handling(flags), stack, of, details)
        };
        let on = |regs: &kvm_regs| stack(0x2000).unwrap().holds(regs.rsp);
        assert!(on(&start(0x0800_0000, stack(0x2000)).unwrap()));
        assert!(!on(&start(0, stack(0x2000)).unwrap()));
        assert!(start(0x0800_0000, stack(1024)).is_err());
    }
}
