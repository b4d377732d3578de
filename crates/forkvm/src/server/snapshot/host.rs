//! What of a host a snapshot depends on: a program has looked at its processor, and its calls may have been rewritten for its KVM.

use std::arch::x86_64::__cpuid_count;

use serde::{Deserialize, Serialize};

use crate::arch::stubs::SyscallEntry;
use crate::machine::probe::KvmHost;

/// What programs see of a processor's features: leaf and subleaf of CPUID, and the bits of EAX, EBX, ECX and EDX that are features
/// and stay the same (Intel SDM Vol. 2A, CPUID; AMD APM Vol. 3, Appendix E).
const LEAVES: [(u32, u32, [u32; 4]); 6] = [
    // The vendor.
    (0, 0, [0, !0, !0, !0]),
    // Without OSXSAVE, which is a setting.
    (1, 0, [0, 0, !(1 << 27), !0]),
    (7, 0, [0, !0, !(1 << 4), !0]),
    (7, 1, [!0, 0, 0, 0]),
    (0xd, 1, [!0, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, !0, !0]),
];
const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// One thing that has to be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// What it is called in manuals.
    pub name: String,
    /// Its bits.
    pub bits: u64,
}

/// What of a host has to be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKind {
    /// Of the processor.
    pub features: Vec<Feature>,
    /// Where `syscall` arrives, and whether it was rewritten.
    pub entry: String,
}

impl HostKind {
    /// This host.
    pub fn of(kvm: &KvmHost) -> Self {
        let mut features = Vec::new();
        let mut add = |name: String, bits: u64| features.push(Feature { name, bits });
        let highest = |leaf: u32| __cpuid_count(leaf & 0x8000_0000, 0).eax >= leaf;
        for (leaf, subleaf, masks) in LEAVES {
            // A guest has the host's or, on Intel and AMD, what KVM lists.
            let own = highest(leaf).then(|| {
                let found = __cpuid_count(leaf, subleaf);
                [found.eax, found.ebx, found.ecx, found.edx]
            });
            let mut listed = kvm.cpuid.as_slice().iter();
            let listed = listed
                .find(|entry| entry.function == leaf && entry.index == subleaf)
                .map(|found| [found.eax, found.ebx, found.ecx, found.edx]);
            for (whose, values) in [("", own), (" of KVM", listed)] {
                let values = values.unwrap_or_default();
                for ((register, mask), value) in REGISTERS.iter().zip(masks).zip(values) {
                    if mask != 0 {
                        let name = format!("CPUID.{leaf:X}.{subleaf}:{register}{whose}");
                        add(name, u64::from(value & mask));
                    }
                }
            }
        }
        add("XCR0".into(), kvm.report.xcr0);
        add("CR4".into(), kvm.report.cr4);
        let ring = match kvm.entry {
            SyscallEntry::Ring0 => "ring 0",
            SyscallEntry::Ring3 => "ring 3",
        };
        let rewritten = match kvm.calls_by_out {
            true => ", rewritten",
            false => "",
        };
        Self {
            features,
            entry: format!("{ring}{rewritten}"),
        }
    }

    /// The first feature that another host has not, or has otherwise: its name, here and there.
    pub fn differs<'a>(&'a self, other: &'a Self) -> Option<(&'a str, u64, u64)> {
        if self.features.len() != other.features.len() {
            return Some(("the number of features", 0, 0));
        }
        let mut pairs = self.features.iter().zip(&other.features);
        let (mine, theirs) = pairs.find(|(mine, theirs)| mine != theirs)?;
        Some((&mine.name, mine.bits, theirs.bits))
    }
}
