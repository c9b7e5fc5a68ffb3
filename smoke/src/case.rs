//! What a scenario works with: the world, a log of everything it did, and short words for common steps.

use crate::command::{Finished, Input, POLL, Program, Running};
use crate::world::World;
use serde_json::Value;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a VM may take to reach a state once nothing more is asked of it.
pub(crate) const SETTLE: Duration = Duration::from_secs(120);
/// Output in the log of a scenario is cut to this.
const SHOWN: usize = 4000;

/// Why a scenario did not pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Failed(String),
    /// Something outside of the project is missing.
    Skipped(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How a scenario ends.
pub(crate) type Outcome = Result<(), Stop>;

/// The code of a scenario.
pub(crate) type Code = fn(&Case<'_>) -> Outcome;

/// A failure with this sentence.
pub(crate) fn failed<T>(sentence: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(sentence.into()))
}

/// Fails with the sentence unless the condition holds.
pub(crate) fn check(holds: bool, sentence: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { failed(sentence()) }
}

/// One scenario at work.
#[derive(Debug)]
pub(crate) struct Case<'w> {
    pub(crate) world: &'w World,
    pub(crate) name: &'static str,
    log: Mutex<String>,
}

impl<'w> Case<'w> {
    pub(crate) fn new(world: &'w World, name: &'static str) -> Self {
        Self { world, name, log: Mutex::default() }
    }

    /// The name of this scenario's VM.
    pub(crate) fn vm(&self) -> String {
        self.vm_named("a")
    }

    /// The name of one of this scenario's VMs.
    pub(crate) fn vm_named(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name)
    }

    /// Keeps a line for the log, which is shown where the scenario fails.
    pub(crate) fn note(&self, line: impl AsRef<str>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(line.as_ref().trim_end());
        log.push('\n');
    }

    /// The log, once.
    pub(crate) fn take_log(&self) -> String {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a program and notes what it said.
    pub(crate) fn run(&self, program: Program) -> Result<Finished, Stop> {
        let shown = shown_argv(&program);
        self.note(format!("$ {shown}"));
        let done = program.run()?;
        self.note_end(&done);
        if done.overdue {
            return failed(format!("`{shown}` had to be killed after {:.0} s", done.took.as_secs_f64()));
        }
        Ok(done)
    }

    fn note_end(&self, done: &Finished) {
        let mut text = String::new();
        for (name, bytes) in [("stdout", &done.stdout), ("stderr", &done.stderr)] {
            if !bytes.is_empty() {
                let cut = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]).into_owned();
                text += &format!("  {name}: {}\n", cut.trim_end().replace('\n', "\n          "));
            }
        }
        text += &format!("  = {} after {:.2} s", done.code(), done.took.as_secs_f64());
        self.note(text);
    }

    /// Runs `banger`, whatever its exit code.
    pub(crate) fn banger(&self, arguments: &[&str]) -> Result<Finished, Stop> {
        self.run(self.world.banger(arguments))
    }

    /// Runs `banger`, which must succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Result<Finished, Stop> {
        self.code(0, arguments)
    }

    /// Runs `banger`, which must exit with `code`.
    pub(crate) fn code(&self, code: i32, arguments: &[&str]) -> Result<Finished, Stop> {
        let done = self.banger(arguments)?;
        check(done.code() == code, || {
            format!("`banger {}` exited with {}, not {code}: {}", arguments.join(" "), done.code(), done.err().trim())
        })?;
        Ok(done)
    }

    /// Starts `banger` and leaves it running.
    pub(crate) fn start(&self, arguments: &[&str], input: Input) -> Result<Running, Stop> {
        let mut program = self.world.banger(arguments);
        program.input = input;
        self.note(format!("$ {} &", shown_argv(&program)));
        Ok(program.spawn()?)
    }

    /// Waits for a program that was left running, and notes what it said.
    pub(crate) fn finish(&self, running: Running) -> Result<Finished, Stop> {
        let done = running.finish()?;
        self.note_end(&done);
        check(!done.overdue, || format!("a command had to be killed after {:.0} s", done.took.as_secs_f64()))?;
        Ok(done)
    }

    /// Makes a VM and waits until commands can be run in it, or for what is asked for.
    pub(crate) fn create(&self, vm: &str, more: &[&str]) -> Outcome {
        let mut arguments = vec!["vm", "create", "--name", vm];
        if !more.contains(&"--wait") {
            arguments.extend(["--wait", "agent"]);
        }
        arguments.extend(more);
        self.ok(&arguments).map(drop)
    }

    /// Runs a shell script in a VM, which must succeed, and gives its output without the last newline.
    pub(crate) fn guest(&self, vm: &str, script: &str) -> Result<String, Stop> {
        Ok(self.ok(&["vm", "exec", vm, "--", "sh", "-c", script])?.out().trim_end().to_owned())
    }

    /// The kernel's name for the present boot of a VM.
    pub(crate) fn boot_id(&self, vm: &str) -> Result<String, Stop> {
        let id = self.guest(vm, "cat /proc/sys/kernel/random/boot_id")?;
        check(id.len() == 36, || format!("`{id}` is no boot id"))?;
        Ok(id)
    }

    /// Everything about a VM.
    pub(crate) fn show(&self, vm: &str) -> Result<Value, Stop> {
        let done = self.ok(&["vm", "show", vm, "--json"])?;
        Ok(serde_json::from_slice(&done.stdout)?)
    }

    /// The VMs of this scenario: all that `vm list` has with its names.
    pub(crate) fn list(&self) -> Result<Vec<Value>, Stop> {
        let done = self.world.banger(&["vm", "list", "--json"]).run()?;
        if done.code() != 0 {
            return failed(format!("`vm list` exited with {}: {}", done.code(), done.err().trim()));
        }
        let list: Value = serde_json::from_slice(&done.stdout)?;
        let prefix = format!("{}-", self.name);
        let ours = |vm: &&Value| vm["name"].as_str().is_some_and(|name| name.starts_with(&prefix));
        match list.as_array() {
            Some(vms) => Ok(vms.iter().filter(ours).cloned().collect()),
            None => failed(format!("`vm list --json` is no array: {list}")),
        }
    }

    /// One field of a VM in the list, or none where it is not there.
    pub(crate) fn field(&self, vm: &str, field: &str) -> Result<Option<Value>, Stop> {
        Ok(self.list()?.iter().find(|listed| listed["name"] == vm).map(|listed| listed[field].clone()))
    }

    /// Waits until a VM is in a state.
    pub(crate) fn wait_state(&self, vm: &str, state: &str) -> Outcome {
        self.wait(SETTLE, &format!("{vm} to be {state}"), || {
            let now = self.field(vm, "state")?;
            Ok(if now.as_ref().is_some_and(|now| now == state) { Ok(()) } else { Err(format!("{now:?}")) })
        })
    }

    /// Waits until a VM does not exist.
    pub(crate) fn wait_gone(&self, vm: &str) -> Outcome {
        self.wait(SETTLE, &format!("{vm} to be gone"), || {
            Ok(match self.field(vm, "state")? {
                None => Ok(()),
                Some(state) => Err(state.to_string()),
            })
        })
    }

    /// Looks again and again until `look` is content, or fails with what it saw last.
    pub(crate) fn wait(
        &self,
        deadline: Duration,
        what: &str,
        mut look: impl FnMut() -> Result<Result<(), String>, Stop>,
    ) -> Outcome {
        let started = Instant::now();
        loop {
            match look()? {
                Ok(()) => {
                    self.note(format!("  waited {:.2} s for {what}", started.elapsed().as_secs_f64()));
                    return Ok(());
                }
                Err(seen) if started.elapsed() > deadline => {
                    return failed(format!("waited {} s for {what}, last saw: {seen}", deadline.as_secs()));
                }
                Err(_) => std::thread::sleep(POLL * 10),
            }
        }
    }

    /// Deletes the scenario's VMs, whatever state they are in.
    pub(crate) fn clean_up(&self) -> Outcome {
        for vm in self.list()? {
            if let Some(name) = vm["name"].as_str() {
                self.ok(&["vm", "delete", "--force", name])?;
            }
        }
        Ok(())
    }
}

fn shown_argv(program: &Program) -> String {
    let mut words = program.argv.iter();
    let first = words.next().map_or("", |first| first.rsplit('/').next().unwrap_or(first));
    std::iter::once(first).chain(words.map(String::as_str)).collect::<Vec<_>>().join(" ")
}
