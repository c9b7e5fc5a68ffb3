//! Who uses which artifact. Pure.

use super::ShelfError;
use messages::ids::VmId;
use messages::request::Force;
use std::collections::{BTreeMap, HashMap};

/// The VMs that use each artifact of one kind, by the artifact's name.
#[derive(Debug, Clone, Default)]
pub struct Users(HashMap<String, BTreeMap<VmId, String>>);

impl Users {
    /// Notes that `vm`, which users know as `label`, uses `artifact`. Again is fine.
    pub fn add(&mut self, artifact: &str, vm: VmId, label: String) {
        self.0.entry(artifact.to_owned()).or_default().insert(vm, label);
    }

    /// Notes that it does so no more. Not known is fine.
    pub fn remove(&mut self, artifact: &str, vm: VmId) {
        if let Some(users) = self.0.get_mut(artifact) {
            users.remove(&vm);
            if users.is_empty() {
                self.0.remove(artifact);
            }
        }
    }

    /// What users know them as.
    #[must_use]
    pub fn of(&self, artifact: &str) -> Vec<String> {
        self.0.get(artifact).map(|users| users.values().cloned().collect()).unwrap_or_default()
    }

    /// Refuses to let go of what is used, unless forced.
    ///
    /// # Errors
    /// [`ShelfError::InUse`].
    pub fn check_free(
        &self,
        what: &'static str,
        artifact: &str,
        others: Vec<String>,
        force: Force,
    ) -> Result<(), ShelfError> {
        let users: Vec<String> = others.into_iter().chain(self.of(artifact)).collect();
        match force {
            Force::No if !users.is_empty() => Err(ShelfError::InUse { what, name: artifact.to_owned(), users }),
            Force::No | Force::Yes => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_not_let_go_but_by_force() {
        let mut users = Users::default();
        let (one, two) = (VmId([1; 8]), VmId([2; 8]));
        users.add("debian", one, "red-fox".to_owned());
        users.add("debian", one, "red-fox".to_owned());
        users.add("debian", two, "blue-owl".to_owned());
        let Err(ShelfError::InUse { users: named, .. }) = users.check_free("image", "debian", vec![], Force::No) else {
            panic!("it was let go")
        };
        assert_eq!(named, ["red-fox", "blue-owl"]);
        users.check_free("image", "debian", vec![], Force::Yes).unwrap();
        users.remove("debian", one);
        users.remove("debian", one);
        users.remove("debian", two);
        users.check_free("image", "debian", vec![], Force::No).unwrap();
        assert!(users.check_free("image", "debian", vec!["an image".to_owned()], Force::No).is_err());
    }
}
