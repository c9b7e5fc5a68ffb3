//! `banger-agent`: as PID 1 the `/init` of a guest, as its child the keeper and the agent, as theirs a server for one SSH
//! connection or its SFTP or a tool that reads or writes the guest's files, with `--process` a test machine.

use guest::files::unpack::Unpacked;
use guest::machine::guest as guest_machine;
use guest::machine::process::{self, Link};
use guest::{files, init, keeper, sftp, ssh, sys};
use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: banger-agent --process --link SOCKET --root DIRECTORY\n\
                     As PID 1 it boots a banger guest.";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    log_to_stderr();
    match role(&arguments) {
        Some(Role::Init) => match init::run() {
            Ok(never) => match never {},
            Err(error) => init::give_up(&error),
        },
        Some(Role::Shutdown(verb)) => init::run_shutdown(&verb),
        Some(Role::Keeper(link)) => {
            init::survive_signals();
            keeper::run(&link)
        }
        Some(Role::Agent(link, restarts)) => {
            sys::raise_descriptor_limit();
            finish(run(guest_machine::run(link, restarts)))
        }
        Some(Role::Process(link, root)) => finish(run(process::run(&link, &root))),
        Some(Role::Ssh) => finish(run(ssh::server::run())),
        Some(Role::Sftp) => finish(sftp::run()),
        Some(Role::Archive(root)) => finish(files::archive::run(&root)),
        Some(Role::Unpack(at, how)) => finish(files::unpack::run(&at, how)),
        Some(Role::Hold) => finish(files::hold()),
        None => fail(USAGE),
    }
}

enum Role {
    Init,
    Shutdown(String),
    Keeper(OwnedFd),
    Agent(OwnedFd, u32),
    Process(Link, PathBuf),
    Ssh,
    Sftp,
    Archive(PathBuf),
    Unpack(PathBuf, Unpacked),
    Hold,
}

fn role(arguments: &[OsString]) -> Option<Role> {
    let text = |index: usize| arguments.get(index).and_then(|argument| argument.to_str());
    let inherited = |index: usize| sys::inherit(text(index)?.parse().ok()?).ok();
    if std::process::id() == 1 {
        let name = arguments.first().map(Path::new).and_then(Path::file_name);
        // The kernel's own arguments may hold anything, so as /init none is looked at.
        return Some(match name.is_some_and(|name| name == "shutdown") {
            true => Role::Shutdown(text(1).unwrap_or("reboot").to_owned()),
            false => Role::Init,
        });
    }
    match text(1)? {
        "--keeper" => Some(Role::Keeper(inherited(2)?)),
        "--ssh" => Some(Role::Ssh),
        "--sftp" => Some(Role::Sftp),
        "--archive" => Some(Role::Archive(arguments.get(2)?.into())),
        "--unpack" => Some(Role::Unpack(arguments.get(2)?.into(), Unpacked::Into)),
        "--unpack-file" => Some(Role::Unpack(arguments.get(2)?.into(), Unpacked::AsFile)),
        "--hold" => Some(Role::Hold),
        "--agent" => Some(Role::Agent(inherited(2)?, text(3)?.parse().ok()?)),
        _ => process_arguments(&arguments[1..]).map(|(link, root)| Role::Process(link, root)),
    }
}

/// One thread: commands and host wait for each other anyway, and a turn between threads costs much in an emulated guest.
fn run(work: impl Future<Output = std::io::Result<()>>) -> std::io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn process_arguments(arguments: &[OsString]) -> Option<(Link, PathBuf)> {
    let mut arguments = arguments.iter();
    let (mut process, mut link, mut root) = (false, None, None);
    while let Some(argument) = arguments.next() {
        match argument.to_str()? {
            "--process" => process = true,
            "--link" => link = Some(Link::parse(arguments.next()?.to_str()?)),
            "--root" => root = Some(arguments.next()?.into()),
            _ => return None,
        }
    }
    Some((link?, root?)).filter(|_| process)
}

fn log_to_stderr() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
}

fn finish(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("banger-agent: {error}")),
    }
}

fn fail(message: &str) -> ExitCode {
    // Where stderr is closed there is nobody to tell.
    drop(writeln!(std::io::stderr(), "{message}"));
    ExitCode::FAILURE
}
