//! The vDSO of unmodified programs (vdso(7)): the time without an exit, told from the processor's counter and one page that
//! only the host writes. What that page does not have is left to the system call.
//!
//! It is a whole shared object of one segment (glibc takes no other), laid out here by the assembler: headers, dynamic section,
//! symbols with their version, code.

use std::arch::global_asm;

use super::layout::{CLOCK, PAGE, monitor};

global_asm!(
    ".pushsection .rodata.forkvm_vdso, \"a\", @progbits",
    ".balign 16",
    // Elf64_Ehdr (elf(5)): ELFCLASS64, ELFDATA2LSB, ET_DYN, EM_X86_64, two program headers, no sections.
    "forkvm_vdso:",
    "  .byte 0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0",
    "  .quad 0",
    "  .short 3, 62",
    "  .long 1",
    "  .quad 0, 64, 0",
    "  .long 0",
    "  .short 64, 56, 2, 64, 0, 0",
    // Elf64_Phdr: PT_LOAD, readable and executable; PT_DYNAMIC, readable.
    "  .long 1, 5",
    "  .quad 0, 0, 0, forkvm_vdso_end - forkvm_vdso, forkvm_vdso_end - forkvm_vdso, {page}",
    "  .long 2, 4",
    "  .quad forkvm_vdso_dynamic - forkvm_vdso, forkvm_vdso_dynamic - forkvm_vdso, forkvm_vdso_dynamic - forkvm_vdso",
    "  .quad forkvm_vdso_hash - forkvm_vdso_dynamic, forkvm_vdso_hash - forkvm_vdso_dynamic, 8",
    // Elf64_Dyn: DT_HASH, DT_SYMTAB, DT_SYMENT, DT_STRTAB, DT_STRSZ, DT_SONAME, DT_VERSYM, DT_VERDEF, DT_VERDEFNUM, DT_NULL.
    "forkvm_vdso_dynamic:",
    "  .quad 4, forkvm_vdso_hash - forkvm_vdso",
    "  .quad 6, forkvm_vdso_symbols - forkvm_vdso",
    "  .quad 11, 24",
    "  .quad 5, forkvm_vdso_strings - forkvm_vdso",
    "  .quad 10, forkvm_vdso_strings_end - forkvm_vdso_strings",
    "  .quad 14, forkvm_vdso_soname - forkvm_vdso_strings",
    "  .quad 0x6ffffff0, forkvm_vdso_versions - forkvm_vdso",
    "  .quad 0x6ffffffc, forkvm_vdso_definitions - forkvm_vdso",
    "  .quad 0x6ffffffd, 2",
    "  .quad 0, 0",
    // One bucket with all symbols in its chain (System V ABI, "Hash Table").
    "forkvm_vdso_hash:",
    "  .long 1, 5, 1, 0, 2, 3, 4, 0",
    // Elf64_Sym: name, STB_GLOBAL and STT_FUNC, a section that is not SHN_UNDEF, address, size.
    ".balign 8",
    "forkvm_vdso_symbols:",
    "  .zero 24",
    ".irp function, clock_gettime, gettimeofday, time, getcpu",
    "  .long forkvm_vdso_name_\\function - forkvm_vdso_strings",
    "  .byte 0x12, 0",
    "  .short 1",
    "  .quad forkvm_vdso_\\function - forkvm_vdso, forkvm_vdso_end_\\function - forkvm_vdso_\\function",
    ".endr",
    // Elf64_Versym: of each symbol. Elf64_Verdef and Elf64_Verdaux: the file's own name (VER_FLG_BASE), then the version that
    // programs ask for (vdso(7)), with the hashes of their names. Go's runtime does not look whether there are any.
    "forkvm_vdso_versions:",
    "  .short 0, 2, 2, 2, 2",
    ".balign 4",
    "forkvm_vdso_definitions:",
    "  .short 1, 1, 1, 1",
    "  .long 0xdeebfa1, 20, 28, forkvm_vdso_soname - forkvm_vdso_strings, 0",
    "  .short 1, 0, 2, 1",
    "  .long 0x3ae75f6, 20, 0, forkvm_vdso_version - forkvm_vdso_strings, 0",
    "forkvm_vdso_strings:",
    "  .byte 0",
    "forkvm_vdso_soname: .asciz \"linux-vdso.so.1\"",
    "forkvm_vdso_version: .asciz \"LINUX_2.6\"",
    "forkvm_vdso_name_clock_gettime: .asciz \"__vdso_clock_gettime\"",
    "forkvm_vdso_name_gettimeofday: .asciz \"__vdso_gettimeofday\"",
    "forkvm_vdso_name_time: .asciz \"__vdso_time\"",
    "forkvm_vdso_name_getcpu: .asciz \"__vdso_getcpu\"",
    "forkvm_vdso_strings_end:",
    // The time of clock R10 in RAX, in nanoseconds, or ZF if the page does not have it. Changes RCX, RDX, R8, R9. The host may
    // anchor the page anew between two instructions of ours, as its sequence tells.
    ".balign 16",
    "forkvm_vdso_now:",
    "  movabs r8, {clock}",
    "0:",
    "  mov r9d, [r8 + {sequence}]",
    "  test r9d, r9d",
    "  jz 2f",
    "  lfence",
    "  rdtsc",
    "  shl rdx, 32",
    "  or rax, rdx",
    "  sub rax, [r8 + {tsc}]",
    // The counter of another processor may lag a little.
    "  jnc 1f",
    "  xor eax, eax",
    "1:",
    "  mul qword ptr [r8 + {rate}]",
    "  shrd rax, rdx, 32",
    "  add rax, [r8 + {times} + r10 * 8]",
    "  cmp r9d, [r8 + {sequence}]",
    "  jne 0b",
    "  test r9d, r9d",
    "2:",
    "  ret",
    // int __vdso_clock_gettime(clockid_t, struct timespec *)
    ".balign 16",
    "forkvm_vdso_clock_gettime:",
    "  cmp edi, 7",
    "  ja 3f",
    "  mov eax, {clocks}",
    "  bt eax, edi",
    "  jnc 3f",
    "  mov r10d, edi",
    "  call forkvm_vdso_now",
    "  jz 3f",
    "  xor edx, edx",
    "  mov ecx, 1000000000",
    "  div rcx",
    "  mov [rsi], rax",
    "  mov [rsi + 8], rdx",
    "  xor eax, eax",
    "  ret",
    "3:",
    "  mov eax, {sys_clock_gettime}",
    "  syscall",
    "  ret",
    "forkvm_vdso_end_clock_gettime:",
    // int __vdso_gettimeofday(struct timeval *, struct timezone *)
    ".balign 16",
    "forkvm_vdso_gettimeofday:",
    "  test rdi, rdi",
    "  jz 4f",
    "  test rsi, rsi",
    "  jnz 4f",
    "  xor r10d, r10d",
    "  call forkvm_vdso_now",
    "  jz 4f",
    "  xor edx, edx",
    "  mov ecx, 1000000000",
    "  div rcx",
    "  mov [rdi], rax",
    "  mov eax, edx",
    "  xor edx, edx",
    "  mov ecx, 1000",
    "  div ecx",
    "  mov [rdi + 8], rax",
    "  xor eax, eax",
    "  ret",
    "4:",
    "  mov eax, {sys_gettimeofday}",
    "  syscall",
    "  ret",
    "forkvm_vdso_end_gettimeofday:",
    // time_t __vdso_time(time_t *)
    ".balign 16",
    "forkvm_vdso_time:",
    "  xor r10d, r10d",
    "  call forkvm_vdso_now",
    "  jz 5f",
    "  xor edx, edx",
    "  mov ecx, 1000000000",
    "  div rcx",
    "  test rdi, rdi",
    "  jz 6f",
    "  mov [rdi], rax",
    "6:",
    "  ret",
    "5:",
    "  mov eax, {sys_time}",
    "  syscall",
    "  ret",
    "forkvm_vdso_end_time:",
    // int __vdso_getcpu(unsigned *cpu, unsigned *node, void *): there is one.
    ".balign 16",
    "forkvm_vdso_getcpu:",
    "  test rdi, rdi",
    "  jz 7f",
    "  mov dword ptr [rdi], 0",
    "7:",
    "  test rsi, rsi",
    "  jz 8f",
    "  mov dword ptr [rsi], 0",
    "8:",
    "  xor eax, eax",
    "  ret",
    "forkvm_vdso_end_getcpu:",
    "forkvm_vdso_end:",
    // A page, as the array below is; the assembler refuses more.
    ".org forkvm_vdso + {page}",
    ".globl forkvm_vdso",
    ".hidden forkvm_vdso",
    ".popsection",
    page = const PAGE,
    clock = const monitor(CLOCK),
    sequence = const ClockData::SEQUENCE,
    tsc = const ClockData::TSC,
    rate = const ClockData::RATE,
    times = const ClockData::TIMES,
    clocks = const ClockData::CLOCKS,
    sys_clock_gettime = const libc::SYS_clock_gettime,
    sys_gettimeofday = const libc::SYS_gettimeofday,
    sys_time = const libc::SYS_time,
);

// SAFETY: it is defined above, a page long by its `.org`, in a section that nothing writes.
unsafe extern "C" {
    safe static forkvm_vdso: [u8; PAGE as usize];
}

/// The shared object. Programs may have it at any address.
pub fn image() -> &'static [u8] {
    &forkvm_vdso
}

/// What the page at [`CLOCK`] holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClockData {
    /// Not the one before, and not 0.
    pub sequence: u32,
    /// The processor's counter when the times were these.
    pub tsc: u64,
    /// Nanoseconds for each tick of the counter, times 2^32.
    pub rate: u64,
    /// CLOCK_REALTIME then, in nanoseconds since the epoch.
    pub real: u64,
    /// CLOCK_MONOTONIC.
    pub monotonic: u64,
    /// CLOCK_BOOTTIME.
    pub boot: u64,
}

impl ClockData {
    const SEQUENCE: usize = 0;
    const TSC: usize = 8;
    const RATE: usize = 16;
    /// One for each clock up to 7 (time.h).
    const TIMES: usize = 24;
    /// Bits of the clocks that are there: REALTIME, MONOTONIC, MONOTONIC_RAW, the two coarse ones, BOOTTIME.
    const CLOCKS: u32 = 0b1111_0011;
    /// Bytes of all.
    pub const LEN: usize = 24 + 8 * 8;

    /// The page's bytes.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (real, monotonic) = (self.real, self.monotonic);
        // The personality's clocks are the same: MONOTONIC_RAW is MONOTONIC, coarse ones are fine.
        let times = [real, monotonic, 0, 0, monotonic, real, monotonic, self.boot];
        let words = [self.sequence.into(), self.tsc, self.rate];
        for (field, value) in bytes.chunks_exact_mut(8).zip(words.iter().chain(&times)) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// The processor's counter (Intel SDM Vol. 2B, RDTSC).
pub fn counter() -> u64 {
    // SAFETY: RDTSC exists on all x86-64 processors and touches registers only. Linux forbids it to none but those who ask for
    // that (PR_SET_TSC in prctl(2)).
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_shared_object_of_one_segment_with_the_four_functions() {
        use goblin::elf::program_header::PT_LOAD;
        let elf = goblin::elf::Elf::parse(image()).unwrap();
        assert_eq!(elf.soname, Some("linux-vdso.so.1"));
        let segments = elf.program_headers.iter();
        assert_eq!(
            segments.filter(|header| header.p_type == PT_LOAD).count(),
            1
        );
        let mut ends = Vec::new();
        for name in ["clock_gettime", "gettimeofday", "time", "getcpu"] {
            let of_name = |symbol: &goblin::elf::Sym| {
                elf.dynstrtab.get_at(symbol.st_name) == Some(&format!("__vdso_{name}"))
            };
            let symbol = elf.dynsyms.iter().find(of_name).unwrap();
            assert!(symbol.is_function() && symbol.st_shndx != 0);
            ends.push(symbol.st_value + symbol.st_size);
        }
        let end = elf.program_headers[0].p_filesz;
        assert!(ends.iter().all(|&at| at <= end), "{ends:?} {end}");
    }
}
