//! What a machine has dirtied, as KVM's ring tells it, and what of its last exit is to be finished before it is used again.

use crate::arch::layout::PAGE;
use crate::failure::Cause;
use crate::machine::{Machine, Residue};

impl Machine {
    /// Takes the ring's new entries over into the list of dirtied pages.
    ///
    /// KVM looks whether the ring is nearly full only now and then, and goes on writing over old entries if it has come
    /// too late: `kvm_pvm` does when it has to emulate the program, as after a load of a non-canonical RSP. So a full
    /// ring means that entries may be lost, and the machine is not to be used again. Nor is it where the host has no
    /// memory for the list.
    pub(super) fn harvest(&mut self) {
        let first = self.memory.logged_from() / PAGE;
        let (Some(ring), Some(dirty)) = (self.vcpu.ring(), self.memory.dirty()) else {
            return;
        };
        let mut recorded = true;
        // Only the logged slot is recorded.
        ring.harvest(|_slot, offset| recorded &= dirty.add((offset + first) as u32).is_ok());
        if !recorded || ring.used() == ring.len() {
            self.residue = Residue::Unknown;
        }
    }

    /// Harvests the ring and has KVM take its entries back.
    fn recycle_ring(&mut self) -> std::io::Result<()> {
        const ATTEMPTS: usize = 100;
        self.harvest();
        let Some(ring) = self.vcpu.ring() else {
            return Ok(());
        };
        ring.mark_reset();
        // Since Linux 6.16 the ioctl stops at a pending signal, such as a kick, and calls that success. The signal is
        // taken on its way out, so the next one gets further.
        for _ in 0..ATTEMPTS {
            self.vm.reset_dirty_rings()?;
            if ring.is_reset() {
                return Ok(());
            }
        }
        self.residue = Residue::Unknown;
        Err(std::io::Error::other("KVM does not take its entries back"))
    }

    pub(super) fn ring_full(&mut self) -> Option<Cause> {
        if let Err(error) = self.recycle_ring() {
            return Some(Cause::Machine(format!("dirty ring: {error}")));
        }
        if self.residue == Residue::Unknown {
            return Some(Cause::Machine("nobody knows any more what it wrote".into()));
        }
        self.over_memory_limit().then_some(Cause::MemoryLimit)
    }

    /// True if the request has dirtied more pages than it may. Counts what has been harvested.
    pub fn over_memory_limit(&self) -> bool {
        self.memory.request_pages() > self.memory.page_limit()
    }

    /// What `get_meminfo` gives: guest memory, the request limit, the most and the present pages of requests, in bytes.
    pub fn memory_info(&self) -> [u64; 4] {
        let bytes = |pages: usize| (pages as u64).saturating_mul(PAGE);
        [
            self.memory.mapping().len(),
            bytes(self.memory.page_limit()),
            bytes(self.memory.dirty_len()),
            bytes(self.memory.request_pages()),
        ]
    }

    /// Finishes what the last exit left pending. False if the machine can't be used any more.
    pub fn settle(&mut self) -> bool {
        match self.residue {
            _ if self.poisoned => false,
            Residue::Clean => true,
            Residue::PendingIo => {
                // What can't be finished stays so: whoever asks again gets the same answer.
                self.residue = if self.vcpu.drain() {
                    Residue::Clean
                } else {
                    Residue::Unknown
                };
                // The rest of an `ins` has written to memory just now.
                self.harvest();
                self.residue == Residue::Clean
            }
            Residue::Unknown => false,
        }
    }

    /// Leaves undone what the last exit left pending.
    #[cfg(test)]
    pub fn forget_residue(&mut self) {
        self.residue = Residue::Clean;
    }

    /// Between requests: keeps room in the ring.
    pub fn keep_ring_low(&mut self) -> std::io::Result<()> {
        match self.vcpu.ring() {
            Some(ring) if ring.used() > ring.len() / 2 => self.recycle_ring(),
            _ => Ok(()),
        }
    }

    /// Forgets all dirtied pages: gives them back to the host and has KVM log them again when next written.
    pub fn shrink(&mut self) -> std::io::Result<()> {
        self.recycle_ring()?;
        self.memory.shrink()
    }
}
