//! Who may use /dev/kvm, by its owner, group and mode, with names.

use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgroups};
use serde::Serialize;

/// A user or a group: its number, and its name if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Named {
    /// The number.
    pub id: u32,
    /// The name.
    pub name: Option<String>,
}

impl Named {
    fn user(id: u32) -> Self {
        let user = User::from_uid(Uid::from_raw(id)).ok().flatten();
        let name = user.map(|user| user.name);
        Self { id, name }
    }

    fn group(id: Gid) -> Self {
        let group = Group::from_gid(id).ok().flatten();
        let id = id.as_raw();
        let name = group.map(|group| group.name);
        Self { id, name }
    }

    /// The name, or the number where there is none, as commands take it.
    pub fn word(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => self.id.to_string(),
        }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// A user with the groups it has.
#[derive(Debug, Serialize)]
pub struct Account {
    /// The user.
    #[serde(flatten)]
    pub user: Named,
    /// Its groups.
    pub groups: Vec<Named>,
}

impl Account {
    /// This process's, with the groups it was given at its start.
    pub fn own() -> Self {
        let mut groups = getgroups().unwrap_or_default();
        groups.push(nix::unistd::getegid());
        Self::new(Named::user(geteuid().as_raw()), groups)
    }

    /// A user's, by name or number, with the groups that a process of it gets from now on.
    pub fn of(name: &str) -> Result<Self, String> {
        let found = match name.parse() {
            Ok(id) => User::from_uid(Uid::from_raw(id)),
            Err(_) => User::from_name(name),
        };
        let user = found
            .map_err(|error| format!("user {name}: {error}"))?
            .ok_or_else(|| format!("there is no user {name} on this machine"))?;
        let c_name = CString::new(user.name.as_str()).map_err(|error| error.to_string())?;
        let groups = nix::unistd::getgrouplist(&c_name, user.gid)
            .map_err(|error| format!("the groups of user {name}: {error}"))?;
        let named = Named {
            id: user.uid.as_raw(),
            name: Some(user.name),
        };
        Ok(Self::new(named, groups))
    }

    fn new(user: Named, mut groups: Vec<Gid>) -> Self {
        groups.sort_by_key(|group| group.as_raw());
        groups.dedup();
        Self {
            user,
            groups: groups.into_iter().map(Named::group).collect(),
        }
    }
}

/// The device file.
#[derive(Debug, Serialize)]
pub struct Device {
    /// Whose it is.
    pub owner: Named,
    /// The group that its mode is about.
    pub group: Named,
    /// Permissions, in octal digits.
    pub mode: String,
    #[serde(skip)]
    bits: u32,
}

impl Device {
    /// Its owner, group and mode.
    pub fn new(metadata: &Metadata) -> Self {
        let bits = metadata.mode() & 0o7777;
        Self {
            owner: Named::user(metadata.uid()),
            group: Named::group(Gid::from_raw(metadata.gid())),
            mode: format!("{bits:o}"),
            bits,
        }
    }

    /// Whether a user may read and write it. As in the kernel the first class that fits decides; root may anyway.
    pub fn allows(&self, account: &Account) -> bool {
        let shift = if account.user.id == 0 {
            return true;
        } else if account.user.id == self.owner.id {
            6
        } else if account.groups.iter().any(|group| group.id == self.group.id) {
            3
        } else {
            0
        };
        self.bits >> shift & 0o6 == 0o6
    }

    /// What root has to do for a user to be allowed: commands.
    pub fn remedy(&self, user: &Named) -> Vec<String> {
        let mut commands = Vec::new();
        let mut group = self.group.word();
        if self.group.id == 0 {
            group = "kvm".into();
            commands.push("groupadd -f kvm && chgrp kvm /dev/kvm".to_owned());
        }
        if self.group.id == 0 || self.bits & 0o060 != 0o060 {
            commands.push("chmod 660 /dev/kvm".to_owned());
        }
        commands.push(format!("usermod -aG {group} {}", user.word()));
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: u32, name: &str) -> Named {
        Named {
            id,
            name: Some(name.into()),
        }
    }

    fn device(owner: u32, group: u32, bits: u32) -> Device {
        Device {
            owner: named(owner, "owner"),
            group: named(group, "kvm"),
            mode: format!("{bits:o}"),
            bits,
        }
    }

    fn account(id: u32, groups: &[u32]) -> Account {
        Account {
            user: named(id, "vcache"),
            groups: groups.iter().map(|&id| named(id, "group")).collect(),
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (device, account, allowed) in [
            (device(0, 104, 0o660), account(997, &[997]), false),
            (device(0, 104, 0o660), account(997, &[104, 997]), true),
            (device(0, 104, 0o666), account(997, &[997]), true),
            (device(0, 104, 0o606), account(997, &[104]), false),
            (device(0, 104, 0o640), account(997, &[104]), false),
            (device(997, 104, 0o600), account(997, &[]), true),
            (device(997, 104, 0o060), account(997, &[104]), false),
            (device(1, 1, 0o000), account(0, &[]), true),
        ] {
            assert_eq!(device.allows(&account), allowed, "{device:?} {account:?}");
        }
    }

    #[test]
    fn what_to_do() {
        let user = named(997, "vcache");
        assert_eq!(
            device(0, 104, 0o660).remedy(&user),
            ["usermod -aG kvm vcache"]
        );
        assert_eq!(
            device(0, 104, 0o600).remedy(&user),
            ["chmod 660 /dev/kvm", "usermod -aG kvm vcache"]
        );
        assert_eq!(device(0, 0, 0o600).remedy(&user).len(), 3);
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = Account::of("root").unwrap();
        assert_eq!(root.user, Account::of("0").unwrap().user);
        assert_eq!(root.user.to_string(), "root (0)");
        let error = Account::of("no-such-user-here").unwrap_err();
        assert!(error.contains("no-such-user-here"), "{error}");
    }
}
