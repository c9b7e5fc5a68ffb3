//! The files that a VM boots from: a kernel's own, and an initramfs with the agent of today in it.

use super::store::{MODULES_CPIO, MODULES_EXT4, VMLINUX};
use super::{KernelError, KernelStore, initramfs};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// What a VMM is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    pub vmlinux: PathBuf,
    pub initramfs: PathBuf,
    /// The read-only module drive.
    pub modules: PathBuf,
    /// Of the module drive's file system.
    pub modules_uuid: Uuid,
    /// `uname -r`: the drive is mounted at `/usr/lib/modules/VERSION`.
    pub version: String,
    pub command_line: String,
}

/// Boot files that were made, by kernel, with what the agent's file looked like then. Clones are the same memo.
///
/// Reading and hashing the agent takes longer than all else of a VM's creation. A lock, not an actor: it is held for a look-up, on a
/// thread that may block.
#[derive(Debug, Clone, Default)]
pub struct Memo(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    files: Mutex<HashMap<String, (AgentStamp, BootFiles)>>,
    /// Held by whoever makes some: after a restart of the daemon every VM asks at once, and one answer is enough for all.
    making: Mutex<()>,
}

/// Changes whenever the agent is replaced or written to: an install does the one, a build the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AgentStamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Memo {
    /// Forgets a kernel that is being removed.
    pub fn forget(&self, kernel: &str) {
        self.lock().remove(kernel);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (AgentStamp, BootFiles)>> {
        // Whole entries are put in and taken out: a panic elsewhere leaves none half-made.
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_up(&self, kernel: &str, agent: AgentStamp) -> Option<BootFiles> {
        let known = self.lock().get(kernel).filter(|(of, _)| *of == agent).map(|(_, files)| files.clone());
        known.filter(|files| files.initramfs.exists())
    }
}

impl KernelStore {
    /// [`Self::boot_files`], remembered while the agent is the same and the files are there.
    ///
    /// # Errors
    /// As that.
    pub fn boot_files_memo(&self, name: &str, agent: &Path, memo: &Memo) -> Result<BootFiles, KernelError> {
        let metadata = fs::metadata(agent).map_err(|source| KernelError::io("read the agent", agent, source))?;
        let stamp = AgentStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if let Some(files) = memo.look_up(name, stamp) {
            return Ok(files);
        }
        let _making = memo.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = memo.look_up(name, stamp) {
            return Ok(files);
        }
        let files = self.boot_files(name, agent)?;
        memo.lock().insert(name.to_owned(), (stamp, files.clone()));
        Ok(files)
    }

    /// The files to boot `name` with this agent. The initramfs is made again when the agent has changed, else found.
    ///
    /// # Errors
    /// When there is no such kernel, or the agent or the files cannot be read or written.
    pub fn boot_files(&self, name: &str, agent: &Path) -> Result<BootFiles, KernelError> {
        let record = self.show(name)?;
        let directory = self.path(record.name.as_str());
        let bytes = fs::read(agent).map_err(|source| KernelError::io("read the agent", agent, source))?;
        let hash = hex::encode(Sha256::digest(&bytes));
        let initramfs = directory.join(format!("initramfs-{}.cpio", &hash[..16]));
        if !initramfs.exists() {
            assemble(&directory, &initramfs, &bytes)?;
            forget_others(&directory, &initramfs);
        }
        Ok(BootFiles {
            vmlinux: directory.join(VMLINUX),
            initramfs,
            modules: directory.join(MODULES_EXT4),
            modules_uuid: record.modules_uuid,
            version: record.version,
            command_line: record.command_line,
        })
    }
}

fn assemble(directory: &Path, target: &Path, agent: &[u8]) -> Result<(), KernelError> {
    let failed = |source| KernelError::io("write", target, source);
    let base = directory.join(MODULES_CPIO);
    let mut modules = File::open(&base).map_err(|source| KernelError::io("read", &base, source))?;
    // Two that race write the same bytes, each into its own file; the last rename wins.
    let fresh =
        tempfile::Builder::new().prefix("initramfs.").suffix(".partial").tempfile_in(directory).map_err(failed)?;
    let mut out = BufWriter::new(fresh.as_file());
    std::io::copy(&mut modules, &mut out).map_err(failed)?;
    initramfs::write_init(&mut out, agent).map_err(failed)?;
    out.flush().map_err(failed)?;
    drop(out);
    // Found by its name after a crash: its bytes must be there before the name is.
    fresh.as_file().sync_data().map_err(failed)?;
    fresh.persist(target).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Removes those of former agents. A VMM reads its initramfs at its start: one that started a moment ago with the former one may
/// not have, and gets a minute.
fn forget_others(directory: &Path, kept: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let settled = || {
            let modified =
                fs::metadata(&path).and_then(|metadata| metadata.accessed().or_else(|_| metadata.modified()));
            modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 60))
        };
        if name.starts_with("initramfs")
            && path != kept
            && settled()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "an initramfs of a former agent could not be removed");
        }
    }
}
