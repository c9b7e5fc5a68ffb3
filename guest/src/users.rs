//! Users and groups, from the text of `/etc/passwd` and `/etc/group`: a static program has no NSS. Reads what it is given.

use crate::sys::Identity;
use nix::unistd::{Gid, Uid};
use std::path::{Path, PathBuf};

/// A user that a command can run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub identity: Identity,
    pub home: PathBuf,
    pub shell: String,
}

/// Says why a user specification names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("the guest has no user `{0}`")]
    NoUser(String),
    #[error("the guest has no group `{0}`")]
    NoGroup(String),
}

/// The shell of users that have none.
pub const DEFAULT_SHELL: &str = "/bin/sh";

/// The text of the two files.
#[derive(Clone, Debug, Default)]
pub struct Database {
    passwd: String,
    group: String,
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl Database {
    /// Reads both files under `root`. A missing one is empty: images without users exist.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let read = |name: &str| {
            let bytes = std::fs::read(root.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self { passwd: read("etc/passwd"), group: read("etc/group") }
    }

    /// Finds `name`, `uid`, `name:group`, `uid:gid` and their mixtures. A number that no line has is still a user, as
    /// container images rely on.
    ///
    /// # Errors
    /// A name that is in neither file.
    pub fn find(&self, specification: &str) -> Result<Account, UserError> {
        let (user, group) = match specification.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (specification, None),
        };
        let mut account = self.account(if user.is_empty() { "0" } else { user })?;
        if let Some(group) = group {
            account.identity.gid = Gid::from_raw(self.group_id(group)?);
            // As docker has it: a group named outright is the only one.
            account.identity.groups = vec![account.identity.gid];
        }
        Ok(account)
    }

    fn account(&self, user: &str) -> Result<Account, UserError> {
        let number = user.parse::<u32>().ok();
        let line = self.lines().find(|line| line.name == user).or_else(|| self.lines().find(|l| Some(l.uid) == number));
        let Some(line) = line else {
            let uid = number.ok_or_else(|| UserError::NoUser(user.to_owned()))?;
            let identity = Identity { uid: Uid::from_raw(uid), gid: Gid::from_raw(0), groups: vec![Gid::from_raw(0)] };
            let home = if uid == 0 { "/root" } else { "/" };
            let name = if uid == 0 { "root".to_owned() } else { user.to_owned() };
            return Ok(Account { name, identity, home: home.into(), shell: DEFAULT_SHELL.into() });
        };
        let shell = if line.shell.is_empty() { DEFAULT_SHELL } else { line.shell };
        let home = if line.home.is_empty() { "/" } else { line.home };
        Ok(Account {
            name: line.name.to_owned(),
            identity: Identity {
                uid: Uid::from_raw(line.uid),
                gid: Gid::from_raw(line.gid),
                groups: self.groups_of(line.name, line.gid),
            },
            home: home.into(),
            shell: shell.to_owned(),
        })
    }

    fn lines(&self) -> impl Iterator<Item = PasswdLine<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let _password = fields.next()?;
            let uid = fields.next()?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let _comment = fields.next()?;
            Some(PasswdLine { name, uid, gid, home: fields.next()?, shell: fields.next().unwrap_or_default() })
        })
    }

    /// (name, number, members)
    fn group_lines(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let _password = fields.next()?;
            Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }

    fn group_id(&self, group: &str) -> Result<u32, UserError> {
        let named = self.group_lines().find(|(name, ..)| *name == group).map(|(_, gid, _)| gid);
        named.or_else(|| group.parse().ok()).ok_or_else(|| UserError::NoGroup(group.to_owned()))
    }

    fn groups_of(&self, user: &str, primary: u32) -> Vec<Gid> {
        let supplementary = self
            .group_lines()
            .filter(|(_, gid, members)| *gid != primary && members.split(',').any(|member| member.trim() == user))
            .map(|(_, gid, _)| gid);
        // NGROUPS_MAX is 65536; a guest's file cannot make setgroups fail by its length alone.
        std::iter::once(primary).chain(supplementary).take(65_536).map(Gid::from_raw).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken line\n:x:7:7::/:\ndev:x:1000:1001:,,,:/home/dev:\n1:x:5:5::/five:/bin/five\n".into(),
            group: "root:x:0:\nsudo:x:27:other,dev\nsudoers:x:28:devel\ndev:x:1001:dev\n".into(),
        }
    }

    fn ids(account: &Account) -> (u32, u32, Vec<u32>) {
        let Identity { uid, gid, groups } = &account.identity;
        (uid.as_raw(), gid.as_raw(), groups.iter().map(|gid| gid.as_raw()).collect())
    }

    #[test]
    fn names_and_numbers_find_the_same_user_with_its_groups() {
        for specification in ["dev", "1000"] {
            let account = database().find(specification).unwrap();
            assert_eq!(ids(&account), (1000, 1001, vec![1001, 27]));
            assert_eq!((account.home.to_str(), account.shell.as_str()), (Some("/home/dev"), DEFAULT_SHELL));
        }
    }

    #[test]
    fn a_group_named_outright_is_the_only_one() {
        assert_eq!(ids(&database().find("dev:sudo").unwrap()), (1000, 27, vec![27]));
        assert_eq!(ids(&database().find("1000:77").unwrap()), (1000, 77, vec![77]));
        assert_eq!(ids(&database().find(":27").unwrap()), (0, 27, vec![27]));
    }

    #[test]
    fn unknown_numbers_are_users_and_unknown_names_are_not() {
        assert_eq!(ids(&database().find("4242").unwrap()), (4242, 0, vec![0]));
        assert_eq!(database().find("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(database().find("dev:nogroup"), Err(UserError::NoGroup("nogroup".into())));
        assert_eq!(Database::default().find("root"), Err(UserError::NoUser("root".into())));
        assert_eq!(ids(&Database::default().find("0").unwrap()), (0, 0, vec![0]));
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        assert_eq!(database().find("1").unwrap().home.to_str(), Some("/five"));
    }
}
