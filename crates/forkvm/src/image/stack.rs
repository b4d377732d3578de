//! The initial stack of a program, as the kernel lays it out: strings, then argc, argv, envp and the auxiliary vector
//! (System V ABI, AMD64 supplement, 3.4.1; Linux: getauxval(3)).

use crate::arch::layout::PAGE;

// getauxval(3); values in Linux: include/uapi/linux/auxvec.h.
const AT_NULL: u64 = 0;
const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;
const AT_FLAGS: u64 = 8;
const AT_ENTRY: u64 = 9;
const AT_UID: u64 = 11;
const AT_EUID: u64 = 12;
const AT_GID: u64 = 13;
const AT_EGID: u64 = 14;
const AT_PLATFORM: u64 = 15;
const AT_HWCAP: u64 = 16;
const AT_CLKTCK: u64 = 17;
const AT_SECURE: u64 = 23;
const AT_RANDOM: u64 = 25;
const AT_HWCAP2: u64 = 26;
const AT_EXECFN: u64 = 31;
const AT_SYSINFO_EHDR: u64 = 33;
const AT_MINSIGSTKSZ: u64 = 51;

/// Bytes of a program header (Elf64_Phdr).
const PROGRAM_HEADER_LEN: u64 = 56;
/// HWCAP2 bit 1: `rdfsbase` and its like work (Linux: arch/x86/include/uapi/asm/hwcap2.h).
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Where a program lies, for the auxiliary vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placed {
    /// AT_ENTRY: its own entry point.
    pub entry: u64,
    /// AT_BASE: the bias of its dynamic linker, 0 without one.
    pub base: u64,
    /// AT_PHDR: the address of its program headers, 0 if they are not in memory.
    pub program_headers: u64,
    /// AT_PHNUM: how many there are.
    pub program_header_count: u16,
}

/// What the stack is made of.
pub struct InitialStack<'a, T> {
    /// argv, the name first.
    pub arguments: &'a [T],
    /// envp.
    pub environment: &'a [T],
    /// AT_EXECFN.
    pub executable: &'a [u8],
    /// Where the program lies.
    pub placed: Placed,
    /// AT_RANDOM.
    pub random: [u8; 16],
    /// AT_UID, AT_EUID, AT_GID, AT_EGID.
    pub ids: [u32; 4],
    /// AT_SYSINFO_EHDR: the vDSO's address, 0 without one.
    pub vdso: u64,
    /// `rdfsbase` works.
    pub fsgsbase: bool,
    /// Bytes of an XSAVE image, for AT_MINSIGSTKSZ.
    pub xsave_len: u64,
}

impl<T: AsRef<[u8]>> InitialStack<'_, T> {
    /// The stack's bytes, to be put so that they end at `top` (page-aligned); the first byte is the initial RSP. And where
    /// AT_RANDOM points to.
    pub fn build(&self, top: u64) -> (Vec<u8>, u64) {
        let mut strings = Vec::new();
        let mut offsets = Vec::new();
        let texts = self
            .arguments
            .iter()
            .chain(self.environment)
            .map(AsRef::as_ref);
        for text in texts.chain([self.executable, b"x86_64"]) {
            offsets.push(strings.len() as u64);
            strings.extend_from_slice(text);
            strings.push(0);
        }
        let random_offset = strings.len() as u64;
        strings.extend_from_slice(&self.random);
        let base = (top - strings.len() as u64) & !15;
        let mut addresses = offsets.iter().map(|offset| base + offset);

        let mut words = vec![self.arguments.len() as u64];
        words.extend(addresses.by_ref().take(self.arguments.len()));
        words.push(0);
        words.extend(addresses.by_ref().take(self.environment.len()));
        words.push(0);
        let executable = addresses.next().unwrap_or(base);
        let platform = addresses.next().unwrap_or(base);
        for (key, value) in self.auxiliary(executable, platform, base + random_offset) {
            words.extend([key, value]);
        }
        // RSP is a multiple of 16 at the entry point.
        if words.len() % 2 == 1 {
            words.push(0);
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(&strings);
        bytes.resize(bytes.len() + (top - base) as usize - strings.len(), 0);
        (bytes, base + random_offset)
    }

    fn auxiliary(&self, executable: u64, platform: u64, random: u64) -> Vec<(u64, u64)> {
        let placed = self.placed;
        let [uid, euid, gid, egid] = self.ids.map(u64::from);
        // CPUID.1:EDX, what Linux gives as AT_HWCAP; the guest has the host's processor.
        let hwcap = u64::from(std::arch::x86_64::__cpuid(1).edx);
        let mut vector = vec![
            (AT_PAGESZ, PAGE),
            (AT_ENTRY, placed.entry),
            (AT_BASE, placed.base),
            (AT_FLAGS, 0),
            (AT_UID, uid),
            (AT_EUID, euid),
            (AT_GID, gid),
            (AT_EGID, egid),
            // ld.so(8), "Secure-execution mode".
            (AT_SECURE, u64::from(uid != euid || gid != egid)),
            (AT_CLKTCK, 100),
            (AT_HWCAP, hwcap),
            (AT_HWCAP2, if self.fsgsbase { HWCAP2_FSGSBASE } else { 0 }),
            (AT_MINSIGSTKSZ, self.xsave_len + 1024),
            (AT_RANDOM, random),
            (AT_EXECFN, executable),
            (AT_PLATFORM, platform),
        ];
        if placed.program_headers != 0 {
            vector.push((AT_PHDR, placed.program_headers));
            vector.push((AT_PHENT, PROGRAM_HEADER_LEN));
            vector.push((AT_PHNUM, u64::from(placed.program_header_count)));
        }
        if self.vdso != 0 {
            vector.push((AT_SYSINFO_EHDR, self.vdso));
        }
        vector.push((AT_NULL, 0));
        vector
    }
}

/// The auxiliary vector as a debugger wants it: where the program lies.
pub fn debugger_auxiliary(placed: Placed) -> Vec<u8> {
    let vector = [
        (AT_PHDR, placed.program_headers),
        (AT_PHENT, PROGRAM_HEADER_LEN),
        (AT_PHNUM, placed.program_header_count.into()),
        (AT_PAGESZ, PAGE),
        (AT_BASE, placed.base),
        (AT_ENTRY, placed.entry),
        (AT_NULL, 0),
    ];
    let words = vector.iter().flat_map(|&(key, value)| [key, value]);
    words.flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_laid_out_as_the_abi_says() {
        let top = 0x7000_0000;
        for arguments in [vec!["a".to_string()], vec!["a".into(), "bc".into()]] {
            let stack = InitialStack {
                arguments: &arguments,
                environment: &["K=v".into()],
                executable: b"/a",
                placed: Placed::default(),
                random: [7; 16],
                ids: [0; 4],
                vdso: 0,
                fsgsbase: true,
                xsave_len: 2700,
            };
            let (bytes, random) = stack.build(top);
            let rsp = top - bytes.len() as u64;
            assert_eq!(rsp % 16, 0);
            let word = |index: usize| {
                u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().unwrap())
            };
            let text = |address: u64| {
                let at = (address - rsp) as usize;
                let end = bytes[at..].iter().position(|&byte| byte == 0).unwrap();
                String::from_utf8(bytes[at..at + end].to_vec()).unwrap()
            };
            assert_eq!(word(0), arguments.len() as u64);
            for (index, argument) in arguments.iter().enumerate() {
                assert_eq!(&text(word(1 + index)), argument);
            }
            assert_eq!(word(1 + arguments.len()), 0);
            assert_eq!(text(word(2 + arguments.len())), "K=v");
            let at = (random - rsp) as usize;
            assert_eq!(bytes[at..at + 16], stack.random);
            assert_eq!(word(3 + arguments.len()), 0);
        }
    }
}
