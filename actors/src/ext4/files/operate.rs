//! The work itself, step by step, on a thread that may block: claim, repair, look, plan, do, check, compare, replace.

use super::claim::{Claim, DISK};
use super::parse::{self, DirectoryEntry, FileKind, FileStat};
use super::plan::{self, CONTENTS_MAX, Change, Known, Plan};
use super::script::Script;
use super::tool::{Call, Said, Tools};
use super::{Ext4Path, FilesError};
use crate::ext4::Ext4Error;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The longest answer to commands that show files, in bytes; some 50,000 names.
const ANSWER_MAX: usize = 16 << 20;
/// What debugfs says of a path at which nothing is (e2fsprogs, lib/ext2fs/ext2_err.et.in).
const ABSENT: [&str; 3] =
    ["File not found by ext2_lookup", "Ext2 inode is not a directory", "Too many symbolic links encountered."];
/// What it says when blocks or inodes have run out.
const FULL: [&str; 3] =
    ["Could not allocate block in ext2 filesystem", "Could not allocate inode in ext2 filesystem", "No free space in"];
/// Exit codes of e2fsck(8): nothing to do, and done.
const CLEAN: i32 = 0;
const CORRECTED: i32 = 1;

/// Carries out [`super::ChangeFiles`].
pub(super) fn change(tools: &Tools, disk: &Path, changes: &[Change]) -> Result<Vec<FileStat>, FilesError> {
    let paths = plan::paths(changes)?;
    let claim = Claim::take(disk)?;
    claim.copy()?;
    // Before anything is written: a journal that is replayed later would undo it.
    repair(tools, &claim, &["-p"])?;
    let known = look(tools, &claim, paths)?;
    let known: Known = known.iter().map(|(path, stat)| (path.clone(), stat.as_ref().map(Into::into))).collect();
    let plan = plan::plan(changes, known)?;
    carry_out(tools, &claim, &plan)?;
    // Also puts right what debugfs leaves behind, such as the attribute block of a file that was replaced.
    repair(tools, &claim, &["-fp"])?;
    let stats = verified(tools, &claim, &plan)?;
    claim.replace()?;
    Ok(changes.iter().filter_map(|change| stats.get(change.path()).cloned()).collect())
}

/// Carries out [`super::StatFile`].
pub(super) fn stat(tools: &Tools, disk: &Path, path: &Ext4Path) -> Result<FileStat, FilesError> {
    found(tools, &shown(tools, disk)?, path)
}

/// Carries out [`super::ReadFile`].
pub(super) fn read(tools: &Tools, disk: &Path, path: &Ext4Path) -> Result<Vec<u8>, FilesError> {
    let claim = shown(tools, disk)?;
    let stat = found(tools, &claim, path)?;
    only(&stat, FileKind::Regular, "regular file")?;
    let size = usize::try_from(stat.size).ok().filter(|_| stat.size <= CONTENTS_MAX);
    let too_large = FilesError::TooLarge { path: path.to_string(), size: stat.size, limit: CONTENTS_MAX };
    let size = size.ok_or(too_large)?;
    // `-R` repeats no command: the answer is the file.
    let request = format!("cat \"{path}\"");
    let arguments = ["-R", request.as_str(), DISK];
    let said = tools.run(&debugfs(&claim, &arguments, "", size))?;
    complain(&claim, &said, &[])?;
    if said.answer.len() != size {
        let found = format!("{} of {size} bytes could be read", said.answer.len());
        return Err(FilesError::Damaged { disk: disk.to_owned(), said: format!("{found} of `{path}`") });
    }
    Ok(said.answer)
}

/// Carries out [`super::ListDirectory`].
pub(super) fn list(tools: &Tools, disk: &Path, path: &Ext4Path) -> Result<Vec<DirectoryEntry>, FilesError> {
    let claim = shown(tools, disk)?;
    only(&found(tools, &claim, path)?, FileKind::Directory, "directory")?;
    let mut script = Script::new();
    script.path("ls -p", path);
    let said = tools.run(&debugfs(&claim, &["-f", "-", DISK], script.text(), ANSWER_MAX))?;
    complain(&claim, &said, &[])?;
    parse::list(script.answers(&said.answer)?.first().copied().unwrap_or_default())
}

fn only(stat: &FileStat, kind: FileKind, wanted: &'static str) -> Result<(), FilesError> {
    match stat.kind {
        found if found == kind => Ok(()),
        FileKind::Symlink => Err(FilesError::Symlink { path: stat.path.to_string() }),
        found => Err(FilesError::Kind { path: stat.path.to_string(), kind: found, wanted }),
    }
}

/// A disk whose journal is empty, for looking. The journal is replayed as the next mount would; nothing else is put right.
fn shown(tools: &Tools, disk: &Path) -> Result<Claim, FilesError> {
    let claim = Claim::take(disk)?;
    claim.show()?;
    repair(tools, &claim, &["-p", "-E", "journal_only"])?;
    Ok(claim)
}

fn repair(tools: &Tools, claim: &Claim, options: &[&str]) -> Result<(), FilesError> {
    let arguments: Vec<&str> = options.iter().copied().chain([DISK]).collect();
    let call = Call {
        program: "e2fsck",
        arguments: &arguments,
        directory: claim.directory(),
        input: "",
        answer_max: ANSWER_MAX,
    };
    let said = tools.run(&call)?;
    match said.status.code() {
        Some(CLEAN | CORRECTED) => Ok(()),
        Some(_) => {
            let talk = String::from_utf8_lossy(&said.answer).into_owned() + &said.complaints;
            let said = talk.lines().find(|line| !line.starts_with("e2fsck 1.")).unwrap_or("e2fsck gave up");
            Err(FilesError::Damaged { disk: claim.disk().to_owned(), said: parse::excerpt(said.as_bytes()) })
        }
        None => Err(FilesError::Tool { program: "e2fsck", said: said.status.to_string() }),
    }
}

/// What is at these paths.
fn look(
    tools: &Tools,
    claim: &Claim,
    paths: impl IntoIterator<Item = Ext4Path>,
) -> Result<BTreeMap<Ext4Path, Option<FileStat>>, FilesError> {
    let (mut script, mut asked) = (Script::new(), Vec::new());
    for path in paths {
        script.path("stat", &path);
        asked.push(path);
    }
    let said = tools.run(&debugfs(claim, &["-f", "-", DISK], script.text(), ANSWER_MAX))?;
    complain(claim, &said, &ABSENT)?;
    let answers = script.answers(&said.answer)?;
    asked.into_iter().zip(answers).map(|(path, answer)| Ok((path.clone(), parse::stat(&path, answer)?))).collect()
}

fn found(tools: &Tools, claim: &Claim, path: &Ext4Path) -> Result<FileStat, FilesError> {
    let mut stats = look(tools, claim, path.ancestors().chain([path.clone()]))?;
    let known: Known = stats.iter().map(|(path, stat)| (path.clone(), stat.as_ref().map(Into::into))).collect();
    plan::reachable(path, &known)?;
    stats.remove(path).flatten().ok_or_else(|| FilesError::NotFound { path: path.to_string() })
}

fn carry_out(tools: &Tools, claim: &Claim, plan: &Plan<'_>) -> Result<(), FilesError> {
    for (name, contents) in &plan.sources {
        let path = claim.directory().join(name);
        let failed = |source| FilesError::copy(claim.disk(), Ext4Error::write(&path, source));
        fs::write(&path, contents).map_err(failed)?;
    }
    let said = tools.run(&debugfs(claim, &["-w", "-f", "-", DISK], plan.script.text(), ANSWER_MAX))?;
    complain(claim, &said, &[])?;
    // Every command was read: a file system that cannot be opened says so, and nothing is done.
    plan.script.answers(&said.answer).map(drop)
}

/// What is at the changed paths now, which has to be what was to be there.
fn verified(tools: &Tools, claim: &Claim, plan: &Plan<'_>) -> Result<BTreeMap<Ext4Path, FileStat>, FilesError> {
    let stats = look(tools, claim, plan.expected.keys().cloned())?;
    let mut verified = BTreeMap::new();
    for (path, expected) in &plan.expected {
        match stats.get(path) {
            Some(Some(stat)) if expected.holds(stat) => drop(verified.insert(path.clone(), stat.clone())),
            other => {
                return Err(FilesError::NotVerified {
                    path: path.to_string(),
                    found: format!("{:?}", other.cloned().flatten()),
                });
            }
        }
    }
    Ok(verified)
}

fn debugfs<'a>(claim: &'a Claim, arguments: &'a [&'a str], input: &'a str, answer_max: usize) -> Call<'a> {
    Call { program: "debugfs", arguments, directory: claim.directory(), input, answer_max }
}

/// debugfs exits 0 whatever went wrong: after its banner of one line, everything that it complains of is an error.
fn complain(claim: &Claim, said: &Said, expected: &[&str]) -> Result<(), FilesError> {
    if !said.status.success() {
        return Err(FilesError::Tool { program: "debugfs", said: said.status.to_string() });
    }
    let banner = |line: &&str| !line.starts_with("debugfs 1.") && !line.trim().is_empty();
    let unexpected = |line: &&str| !expected.iter().any(|words| line.trim_end().ends_with(words));
    let Some(line) = said.complaints.lines().filter(banner).find(unexpected) else { return Ok(()) };
    let complaint = parse::excerpt(line.as_bytes());
    Err(if FULL.iter().any(|words| line.contains(words)) {
        FilesError::Full { disk: claim.disk().to_owned(), said: complaint }
    } else {
        FilesError::Tool { program: "debugfs", said: complaint }
    })
}
