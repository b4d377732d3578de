//! What a processor holds of a task while another one runs.

use std::sync::Arc;

use kvm_bindings::kvm_regs;
use serde::{Deserialize, Serialize};

use crate::memory::access::USER_END;

/// Bytes of an XSAVE image as KVM gives it.
pub const VECTOR_LEN: usize = 4096;

/// Vector state as a program finds it at its start: all of it zero but for the control words. An image names what is not
/// in its initial state, which for these two is what it says (Intel SDM Vol. 1, 13.6 and 10.5.1, Table 10-2).
pub fn initial_vector() -> Box<[u8; VECTOR_LEN]> {
    const FCW: (usize, u16) = (0, 0x37f);
    const MXCSR: (usize, u16) = (24, 0x1f80);
    const XSTATE_BV: (usize, u16) = (512, 0b11);
    let mut image = Box::new([0; VECTOR_LEN]);
    for (at, value) in [FCW, MXCSR, XSTATE_BV] {
        image[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    image
}

/// The state of ring 3: what a switch saves and loads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Context {
    /// General registers, RIP and RFLAGS.
    #[serde(with = "registers")]
    pub regs: kvm_regs,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// Vector state as an XSAVE image; `None` as long as the processor holds it.
    #[serde(with = "vector")]
    pub vector: Option<Arc<[u8; VECTOR_LEN]>>,
}

impl Context {
    /// Whether all of it is there, and such as a processor takes.
    pub fn is_whole(&self) -> bool {
        // Bits 63:47 are the same (Intel SDM Vol. 1, 3.3.7.1).
        let canonical = |address: u64| matches!(address >> 47, 0 | 0x1_ffff);
        let bases = canonical(self.fs_base) && canonical(self.gs_base);
        bases && self.regs.rip < USER_END && self.vector.is_some()
    }
}

/// The registers as numbers, in the order of `struct kvm_regs`.
mod registers {
    use crate::arch::regs::user_flags;
    use kvm_bindings::kvm_regs;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(regs: &kvm_regs, to: S) -> Result<S::Ok, S::Error> {
        [
            regs.rax,
            regs.rbx,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            regs.rsp,
            regs.rbp,
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rip,
            regs.rflags,
        ]
        .serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<kvm_regs, D::Error> {
        let [
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        ] = <[u64; 18]>::deserialize(from)?;
        Ok(kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags: user_flags(rflags),
        })
    }
}

/// An image without the zeroes at its end.
mod vector {
    use super::{Arc, VECTOR_LEN};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    type Image = Arc<[u8; VECTOR_LEN]>;

    pub fn serialize<S: Serializer>(image: &Option<Image>, to: S) -> Result<S::Ok, S::Error> {
        let used = |image: &Image| {
            let last = image.iter().rposition(|&byte| byte != 0);
            image[..last.map_or(0, |last| last + 1)].to_vec()
        };
        image.as_ref().map(used).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Image>, D::Error> {
        let Some(used) = Option::<Vec<u8>>::deserialize(from)? else {
            return Ok(None);
        };
        let mut image = [0; VECTOR_LEN];
        let place = image.get_mut(..used.len());
        let too_long = || D::Error::custom("a vector state that is too long");
        place.ok_or_else(too_long)?.copy_from_slice(&used);
        Ok(Some(Arc::new(image)))
    }
}

/// What of the vector state a program may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorFormat {
    /// Bytes of its XSAVE image, in the standard format (Intel SDM Vol. 1, 13.4).
    pub len: usize,
    /// Its parts, as XCR0 has them.
    pub features: u64,
    /// The bits of MXCSR that may be set.
    pub mxcsr_mask: u32,
}

/// Offset of MXCSR_MASK in the legacy part of an XSAVE image (Intel SDM Vol. 1, Table 10-2).
const MXCSR_MASK: usize = 28;
/// Where the parts beyond x87 and SSE begin.
const EXTENDED: usize = 576;
/// What a mask of zero stands for (Intel SDM Vol. 1, 11.6.6).
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;

impl VectorFormat {
    /// As XCR0 has it, and an image of the processor.
    pub fn of(xcr0: u64, image: &[u8; VECTOR_LEN]) -> Self {
        let mask = image[MXCSR_MASK..].first_chunk().copied();
        let end = (2..63)
            .filter(|part| xcr0 & 1 << part != 0)
            .map(|part| {
                // CPUID.(EAX=0DH,ECX=part): EAX, its size; EBX, its offset.
                let found = std::arch::x86_64::__cpuid_count(0xd, part);
                (found.ebx as usize).saturating_add(found.eax as usize)
            })
            .fold(EXTENDED, usize::max);
        Self {
            len: end.min(VECTOR_LEN),
            features: xcr0,
            mxcsr_mask: match mask.map_or(0, u32::from_le_bytes) {
                0 => DEFAULT_MXCSR_MASK,
                mask => mask,
            },
        }
    }
}
