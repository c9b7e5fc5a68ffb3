//! Names of VMs: drawn, looked up, and guessed at. Pure apart from the random words.

use messages::error::{ErrorKind, WireError};
use messages::ids::{VmId, VmName, VmRef};
use std::collections::BTreeMap;

/// How alike a name must be to be offered, from 0 to 1.
const ALIKE: f64 = 0.75;
/// How many names are offered.
const OFFERS: usize = 3;

/// Every VM by name and by id.
#[derive(Debug, Default)]
pub struct Names {
    by_name: BTreeMap<VmName, VmId>,
    by_id: BTreeMap<VmId, VmName>,
}

impl Names {
    /// Takes a name for a VM; its old name is free then.
    ///
    /// # Errors
    /// Where another VM has it.
    pub fn take(&mut self, name: &VmName, vm: VmId) -> Result<(), WireError> {
        match self.by_name.get(name) {
            Some(owner) if *owner != vm => {
                Err(WireError::new(ErrorKind::Conflict, format!("the name `{name}` is taken by VM {owner}"))
                    .hint(format!("choose another with `--name`, or delete it with `banger vm delete {name}`")))
            }
            Some(_) | None => {
                if let Some(before) = self.by_id.insert(vm, name.clone()) {
                    self.by_name.remove(&before);
                }
                self.by_name.insert(name.clone(), vm);
                Ok(())
            }
        }
    }

    /// Forgets a VM.
    pub fn drop_vm(&mut self, vm: VmId) {
        if let Some(name) = self.by_id.remove(&vm) {
            self.by_name.remove(&name);
        }
    }

    /// A free name of two words.
    #[must_use]
    pub fn draw(&self) -> VmName {
        let drawn = (0..20).filter_map(|_| petname::petname(2, "-")?.parse::<VmName>().ok());
        drawn.into_iter().find(|name| !self.by_name.contains_key(name)).unwrap_or_else(|| {
            // Two words do not suffice: a number does, for there is one more than there are VMs.
            let word = petname::petname(1, "-").unwrap_or_else(|| "vm".to_owned());
            (0..=self.by_name.len())
                .filter_map(|number| format!("{word}-{number}").parse::<VmName>().ok())
                .find(|name| !self.by_name.contains_key(name))
                .expect("one of n + 1 names is not among n")
        })
    }

    /// Finds a VM by name, id, or a prefix of one id.
    ///
    /// # Errors
    /// None or several, with what was perhaps meant.
    pub fn resolve(&self, reference: &VmRef) -> Result<VmId, WireError> {
        let asked = reference.as_str();
        if let Some(vm) = asked.parse().ok().and_then(|name: VmName| self.by_name.get(&name)) {
            return Ok(*vm);
        }
        let mut matching = self.by_id.iter().filter(|(id, _)| id.to_string().starts_with(asked));
        match (matching.next(), matching.next()) {
            (Some((vm, _)), None) => Ok(*vm),
            (Some((_, first)), Some((_, second))) => Err(WireError::new(
                ErrorKind::Usage,
                format!("`{asked}` is the beginning of several ids, of VMs {first} and {second} among others"),
            )),
            (None, _) => {
                let error = WireError::new(ErrorKind::NotFound, format!("there is no VM `{asked}`"));
                Err(match self.nearest(asked).as_slice() {
                    [] => error.hint("`banger vm list` shows them all"),
                    near => error.hint(format!("did you mean {}?", near.join(" or "))),
                })
            }
        }
    }

    fn nearest(&self, asked: &str) -> Vec<String> {
        let mut near: Vec<(f64, &VmName)> = self
            .by_name
            .keys()
            .map(|name| (strsim::jaro_winkler(asked, name.as_str()), name))
            .filter(|(score, _)| *score >= ALIKE)
            .collect();
        near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        near.into_iter().take(OFFERS).map(|(_, name)| format!("`{name}`")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        names.take(&"web".parse().unwrap(), "aa00000000000001".parse().unwrap()).unwrap();
        names.take(&"worker".parse().unwrap(), "aa00000000000002".parse().unwrap()).unwrap();
        names.take(&"aa0".parse().unwrap(), "bb00000000000003".parse().unwrap()).unwrap();
        names
    }

    fn resolve(text: &str) -> Result<String, WireError> {
        names().resolve(&text.parse().unwrap()).map(|vm| vm.to_string())
    }

    #[test]
    fn names_come_before_ids_and_prefixes_must_be_unique() {
        assert_eq!(resolve("web").unwrap(), "aa00000000000001");
        assert_eq!(resolve("aa0").unwrap(), "bb00000000000003");
        assert_eq!(resolve("bb").unwrap(), "bb00000000000003");
        assert_eq!(resolve("aa00000000000002").unwrap(), "aa00000000000002");
        assert_eq!(resolve("aa").unwrap_err().kind, ErrorKind::Usage);
    }

    #[test]
    fn unknown_names_get_the_nearest() {
        let error = resolve("wroker").unwrap_err();
        assert_eq!((error.kind, error.hints), (ErrorKind::NotFound, vec!["did you mean `worker`?".to_owned()]));
        assert_eq!(resolve("zzz").unwrap_err().hints, vec!["`banger vm list` shows them all".to_owned()]);
    }

    #[test]
    fn names_are_unique_and_come_free() {
        let mut names = names();
        let new = VmId([7; 8]);
        assert_eq!(names.take(&"web".parse().unwrap(), new).unwrap_err().kind, ErrorKind::Conflict);
        names.take(&"front".parse().unwrap(), "aa00000000000001".parse().unwrap()).unwrap();
        names.take(&"web".parse().unwrap(), new).unwrap();
        names.drop_vm(new);
        assert!(names.resolve(&"web".parse().unwrap()).is_err());
        let drawn = names.draw();
        assert_eq!(drawn.as_str().split('-').count(), 2, "{drawn}");
    }
}
