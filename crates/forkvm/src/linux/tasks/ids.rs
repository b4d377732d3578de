//! The user and the groups of a task (credentials(7)). They are what it says they are, and change nothing about what it may
//! do, which is the machine's to say.

use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

use crate::linux::abi::{Guest, Value, count, field_u32, flags, int};

/// Most groups that setgroups(2) takes. Linux takes 65,536, which each task would hold in the host's memory.
const MOST_GROUPS: usize = 1024;
/// "No change", and no user or group.
const NONE: u32 = u32::MAX;

/// One kind of id, as a task has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Whose process it is.
    pub real: u32,
    /// By whose rights it acts.
    pub effective: u32,
    /// What it may go back to.
    pub saved: u32,
    /// Who owns the files that it makes.
    pub files: u32,
}

impl Set {
    /// setuid(2), setgid(2)
    fn set(self, id: u32, privileged: bool) -> Result<Self, Errno> {
        if id == NONE {
            return Err(Errno::INVAL);
        }
        if privileged {
            return Ok(Self {
                real: id,
                effective: id,
                saved: id,
                files: id,
            });
        }
        self.has([self.real, self.saved], id)?;
        Ok(Self {
            effective: id,
            files: id,
            ..self
        })
    }

    /// setreuid(2), setregid(2)
    fn set_two(self, [real, effective]: [u32; 2], privileged: bool) -> Result<Self, Errno> {
        if !privileged {
            self.has([self.real, self.effective], real)?;
            self.has([self.real, self.effective, self.saved], effective)?;
        }
        let new = Self {
            real: given(real).unwrap_or(self.real),
            effective: given(effective).unwrap_or(self.effective),
            ..self
        };
        let saves = real != NONE || effective != NONE && effective != self.real;
        Ok(Self {
            saved: if saves { new.effective } else { self.saved },
            files: new.effective,
            ..new
        })
    }

    /// setresuid(2), setresgid(2)
    fn set_three(self, wanted: [u32; 3], privileged: bool) -> Result<Self, Errno> {
        if !privileged {
            for id in wanted {
                self.has([self.real, self.effective, self.saved], id)?;
            }
        }
        let [real, effective, saved] = wanted.map(given);
        let effective = effective.unwrap_or(self.effective);
        Ok(Self {
            real: real.unwrap_or(self.real),
            effective,
            saved: saved.unwrap_or(self.saved),
            files: effective,
        })
    }

    /// setfsuid(2), setfsgid(2): it never fails.
    fn set_files(self, id: u32, privileged: bool) -> Self {
        let own = [self.real, self.effective, self.saved, self.files];
        if id != NONE && (privileged || own.contains(&id)) {
            Self { files: id, ..self }
        } else {
            self
        }
    }

    /// Whether a task without rights may take an id: one of these, or to leave it as it is.
    fn has<const N: usize>(self, own: [u32; N], id: u32) -> Result<(), Errno> {
        if id == NONE || own.contains(&id) {
            Ok(())
        } else {
            Err(Errno::PERM)
        }
    }
}

fn given(id: u32) -> Option<u32> {
    (id != NONE).then_some(id)
}

/// The ids of a task. It starts as root, in no other group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// The user.
    pub user: Set,
    /// The group.
    pub group: Set,
    /// The other groups, in order.
    pub groups: Arc<[u32]>,
}

impl Ids {
    /// As execve(2) leaves them.
    pub fn after_exec(&self) -> Self {
        let saved = |set: Set| Set {
            saved: set.effective,
            files: set.effective,
            ..set
        };
        Self {
            user: saved(self.user),
            group: saved(self.group),
            groups: Arc::clone(&self.groups),
        }
    }

    /// User and group of what it makes.
    pub fn owner(&self) -> (u32, u32) {
        (self.user.files, self.group.files)
    }

    /// CAP_SETUID and CAP_SETGID come and go with root's id (capabilities(7), "Effect of user ID changes on capabilities").
    fn is_privileged(&self) -> bool {
        self.user.effective == 0
    }
}

/// The calls that ask for ids, and those that change them.
pub fn call(ids: &mut Ids, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Value {
    let [a, b, c, ..] = args;
    let (one, two, three) = (flags(a), [a, b].map(flags), [a, b, c].map(flags));
    let privileged = ids.is_privileged();
    let (user, group) = (ids.user, ids.group);
    match number {
        Sysno::getuid => return Ok(user.real.into()),
        Sysno::geteuid => return Ok(user.effective.into()),
        Sysno::getgid => return Ok(group.real.into()),
        Sysno::getegid => return Ok(group.effective.into()),
        Sysno::getresuid => return write(guest, three_of(user), [a, b, c]),
        Sysno::getresgid => return write(guest, three_of(group), [a, b, c]),
        Sysno::getgroups => return getgroups(ids, guest, a, b),
        Sysno::setgroups => return setgroups(ids, guest, a, b),
        Sysno::setuid => ids.user = user.set(one, privileged)?,
        Sysno::setgid => ids.group = group.set(one, privileged)?,
        Sysno::setreuid => ids.user = user.set_two(two, privileged)?,
        Sysno::setregid => ids.group = group.set_two(two, privileged)?,
        Sysno::setresuid => ids.user = user.set_three(three, privileged)?,
        Sysno::setresgid => ids.group = group.set_three(three, privileged)?,
        Sysno::setfsuid => {
            ids.user = user.set_files(one, privileged);
            return Ok(user.files.into());
        }
        Sysno::setfsgid => {
            ids.group = group.set_files(one, privileged);
            return Ok(group.files.into());
        }
        _ => return Err(Errno::NOSYS),
    }
    Ok(0)
}

fn three_of(set: Set) -> [u32; 3] {
    [set.real, set.effective, set.saved]
}

fn write(guest: &mut Guest<'_>, ids: [u32; 3], addresses: [u64; 3]) -> Value {
    for (id, address) in ids.into_iter().zip(addresses) {
        guest.write(address, &id.to_le_bytes())?;
    }
    Ok(0)
}

fn getgroups(ids: &Ids, guest: &mut Guest<'_>, size: u64, address: u64) -> Value {
    let room = usize::try_from(int(size)).map_err(|_| Errno::INVAL)?;
    if room > 0 {
        if room < ids.groups.len() {
            return Err(Errno::INVAL);
        }
        let bytes: Vec<u8> = ids.groups.iter().flat_map(|id| id.to_le_bytes()).collect();
        guest.write(address, &bytes)?;
    }
    Ok(count(ids.groups.len()))
}

fn setgroups(ids: &mut Ids, guest: &mut Guest<'_>, size: u64, address: u64) -> Value {
    if !ids.is_privileged() {
        return Err(Errno::PERM);
    }
    let len = usize::try_from(int(size)).map_err(|_| Errno::INVAL)?;
    if len > MOST_GROUPS {
        return Err(Errno::INVAL);
    }
    let mut bytes = vec![0; len * size_of::<u32>()];
    guest.memory.read(address, &mut bytes)?;
    let mut groups: Vec<u32> = (0..len).map(|nth| field_u32(&bytes, nth * 4)).collect();
    if groups.contains(&NONE) {
        return Err(Errno::INVAL);
    }
    groups.sort_unstable();
    ids.groups = groups.into();
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Machine, SCRATCH};

    #[test]
    fn who_gives_up_root_does_not_get_it_back() {
        let root = Set::default();
        let user = root.set(33, true).unwrap();
        assert_eq!(user.set(0, false), Err(Errno::PERM));
        assert_eq!(user.set_two([0, NONE], false), Err(Errno::PERM));
        assert_eq!(user.set_three([NONE, NONE, 0], false), Err(Errno::PERM));
        assert_eq!(user.set_files(0, false), user);
        assert_eq!(user.set(33, false), Ok(user));
        // But who keeps it as the saved one.
        let kept = root.set_three([33, 33, NONE], true).unwrap();
        assert_eq!(kept.set(0, false).unwrap().effective, 0);
    }

    #[test]
    fn groups_are_kept_in_order_and_bounded() {
        let mut machine = Machine::new(Vec::new());
        let groups = [7u32, 3, 5].map(u32::to_le_bytes);
        let list = machine.put(0, groups.as_flattened());
        assert_eq!(machine.call(Sysno::setgroups, &[3, list]), 0);
        assert_eq!(machine.call(Sysno::getgroups, &[0, 0]), 3);
        assert_eq!(machine.call(Sysno::getgroups, &[2, SCRATCH]), -22);
        assert_eq!(machine.call(Sysno::getgroups, &[3, SCRATCH]), 3);
        assert_eq!(machine.get(SCRATCH, 4), 3u32.to_le_bytes());
        for size in [MOST_GROUPS as u64 + 1, u64::MAX, 1 << 31] {
            assert_eq!(machine.call(Sysno::setgroups, &[size, list]), -22);
        }
        assert_eq!(machine.call(Sysno::setgroups, &[1000, u64::MAX - 8]), -14);
        assert_eq!(machine.call(Sysno::setuid, &[33]), 0);
        assert_eq!(machine.call(Sysno::setgroups, &[0, 0]), -1);
    }
}
