//! `banger vm run` and `banger vm exec`: what is run in a guest, connected to what, and what is said when it is over.

use super::args::{ExecArgs, RunArgs};
use super::attach::{self, Attachment, Ending};
use super::client::{Absent, Answer, Client, unexpected};
use super::failure::{Failure, Outcome};
use super::output::say;
use super::vm::{milliseconds, spec};
use messages::error::{ErrorKind, WireError};
use messages::guest::{ArgBytes, ExecCommand, ExecSpec, OnDisconnect};
use messages::ids::{OperationId, VmId, VmName, VmRef};
use messages::reply::Reply;
use messages::request::{Force, RequestBody};
use messages::vm::{Lifetime, RestartPolicy};
use serde_json::json;
use std::ffi::OsString;
use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

/// How long a guest may take to start a command that nobody stays attached to.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long the daemon may take to delete an ephemeral VM before we say that it may still be there.
const REMOVE_DEADLINE: Duration = Duration::from_secs(30);

/// An operation that we hold the socket of.
#[derive(Debug)]
struct Attached {
    vm: VmId,
    name: VmName,
    operation: OperationId,
    socket: OwnedFd,
}

/// `banger vm run`.
pub(super) async fn run(client: &Client, args: RunArgs) -> Outcome {
    check(&args)?;
    let lifetime = if args.remove { Lifetime::Ephemeral } else { Lifetime::Kept };
    let wait = Some(args.wait.into());
    let no_command = args.argv.is_empty() && args.entrypoint.is_none();
    let shell = no_command && !args.detach && stdin().is_terminal() && stdout().is_terminal();
    let exec = ExecSpec {
        command: run_command(args.argv, args.entrypoint, shell),
        env: environment(args.command.env, shell),
        workdir: args.command.workdir,
        user: args.command.user,
        terminal: shell.then(attach::size_or_default),
        // Without a command, what is typed is what a shell is to do, also where its output goes to a file.
        stdin: !args.detach && (shell || !stdin().is_terminal() || (no_command && in_foreground())),
        on_disconnect: if args.detach { OnDisconnect::KeepRunning } else { OnDisconnect::Kill },
    };
    let attachment = Attachment { stdin: exec.stdin, terminal: shell };
    let body = RequestBody::RunVm {
        spec: spec(args.spec, RestartPolicy::No, lifetime),
        wait,
        exec,
        timeout_ms: args.timeout.map(milliseconds),
    };
    let attached = match attached(client.call(Absent::Start, body).await?)? {
        Either::Attached(attached) => attached,
        Either::Left(left) => return announce(client, &left, Print::Vm),
    };
    if args.detach {
        return leave(client, attached, Print::Vm);
    }
    let Attached { vm, name, socket, .. } = attached;
    let ending = attach::run(socket, attachment)?;
    if args.remove && !matches!(ending, Ending::Detached) {
        remove(client, vm, &name).await;
    } else if matches!(ending, Ending::Exited(_) | Ending::Failed(_) | Ending::HungUp | Ending::Terminated) {
        client.output.remark(&format!(
            "VM {name} keeps running: `banger vm exec -t {name} -- sh` enters it, `banger vm stop {name}` stops it, \
             `banger vm delete --force {name}` deletes it"
        ));
    }
    conclude(client, &vm, &name, ending).await
}

/// `banger vm exec`.
pub(super) async fn exec(client: &Client, args: ExecArgs) -> Outcome {
    let exec = ExecSpec {
        command: ExecCommand::Argv(arguments(args.argv)),
        env: environment(args.command.env, args.tty),
        workdir: args.command.workdir,
        user: args.command.user,
        terminal: args.tty.then(attach::size_or_default),
        stdin: !args.detach && (args.interactive || args.tty || !stdin().is_terminal()),
        on_disconnect: if args.detach { OnDisconnect::KeepRunning } else { OnDisconnect::Kill },
    };
    let attachment = Attachment { stdin: exec.stdin, terminal: args.tty };
    let body = RequestBody::ExecVm { vm: args.vm, exec, wait: Some(args.wait.into()) };
    match attached(client.call(Absent::Start, body).await?)? {
        Either::Attached(attached) if args.detach => leave(client, attached, Print::Operation),
        Either::Attached(Attached { vm, name, socket, .. }) => {
            let ending = attach::run(socket, attachment)?;
            conclude(client, &vm, &name, ending).await
        }
        Either::Left(left) => announce(client, &left, Print::Operation),
    }
}

/// Whether a read from our terminal gets what is typed, and does not stop us as a shell's background job. Of a terminal that is not
/// our session's nobody can tell, and it stops nobody.
fn in_foreground() -> bool {
    nix::unistd::tcgetpgrp(stdin()).map_or(true, |group| group == nix::unistd::getpgrp())
}

fn check(args: &RunArgs) -> Result<(), Failure> {
    if let Some(path) = &args.path {
        let path = path.to_string_lossy();
        return Err(Failure::usage(format!("`banger vm run` takes no path yet, and was given `{path}`"))
            .hint(format!("to run it as a command, put `--` in front: `banger vm run -- {path}`")));
    }
    if args.remove && args.detach && args.argv.is_empty() && args.entrypoint.is_none() {
        return Err(Failure::usage("`--rm` with `--detach` needs a command, at whose end the VM is deleted"));
    }
    Ok(())
}

fn run_command(argv: Vec<OsString>, entrypoint: Option<OsString>, shell: bool) -> ExecCommand {
    let command = arguments(argv);
    match entrypoint {
        Some(program) if program.is_empty() && !command.is_empty() => ExecCommand::Argv(command),
        Some(program) => {
            let entrypoint = if program.is_empty() { Vec::new() } else { arguments(vec![program]) };
            ExecCommand::Image { entrypoint: Some(entrypoint), command }
        }
        None if shell => ExecCommand::LoginShell,
        None => ExecCommand::Image { entrypoint: None, command },
    }
}

fn arguments(argv: Vec<OsString>) -> Vec<ArgBytes> {
    argv.into_iter().map(|argument| ArgBytes(argument.into_vec())).collect()
}

/// Programs on a terminal need to know which kind it is.
fn environment(mut env: Vec<(String, String)>, terminal: bool) -> Vec<(String, String)> {
    if terminal && !env.iter().any(|(key, _)| key == "TERM") {
        let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
        env.push(("TERM".to_owned(), term.unwrap_or_else(|| "xterm".to_owned())));
    }
    env
}

enum Either {
    Attached(Attached),
    Left(Left),
}

/// A VM, and what was left running in it.
struct Left {
    vm: VmId,
    name: VmName,
    operation: Option<OperationId>,
    /// Of the command in the guest.
    pid: Option<u32>,
}

/// What is printed of something that was left running: what the user does not know yet, and finds it by.
#[derive(Clone, Copy)]
enum Print {
    Vm,
    Operation,
}

fn attached(answer: Answer) -> Result<Either, Failure> {
    match (answer.reply, answer.descriptor) {
        (Reply::Attached { vm, name, operation, .. }, Some(socket)) => {
            Ok(Either::Attached(Attached { vm, name, operation, socket }))
        }
        (Reply::Attached { .. }, None) => {
            Err(Failure::new(ErrorKind::Protocol, "bangerd sent no connection to the command"))
        }
        (Reply::Detached { vm, name, operation }, _) => {
            Ok(Either::Left(Left { vm, name, operation: Some(operation), pid: None }))
        }
        (other, _) => Err(unexpected(&other)),
    }
}

/// Sees the command start, leaves it running, and prints what is needed to find it again.
fn leave(client: &Client, attached: Attached, print: Print) -> Outcome {
    let Attached { vm, name, operation, socket } = attached;
    let pid = attach::start_and_leave(socket, START_DEADLINE)?;
    announce(client, &Left { vm, name, operation: Some(operation), pid: Some(pid) }, print)
}

fn announce(client: &Client, left: &Left, print: Print) -> Outcome {
    if client.output.json {
        client.output.value(&json!({
            "id": left.vm.to_string(),
            "name": left.name,
            "operation": left.operation.map(|operation| operation.to_string()),
            "pid": left.pid,
        }))?;
        return Ok(0);
    }
    match (print, left.operation) {
        (Print::Operation, Some(operation)) => client.output.data(&format!("{operation}\n"))?,
        (Print::Vm, _) | (Print::Operation, None) => client.output.data(&format!("{}\n", left.name))?,
    }
    Ok(0)
}

/// Says how the command ended, where its exit code does not.
async fn conclude(client: &Client, vm: &VmId, name: &VmName, ending: Ending) -> Outcome {
    if let Some(code) = ending.code() {
        match ending {
            Ending::Detached => left(
                client,
                "detached",
                name,
                &format!(
                    "detached: the command runs on in VM {name}; `banger vm exec -t {name} -- sh` enters the VM, \
                     `banger vm stop {name}` ends it"
                ),
            ),
            Ending::Abandoned => left(
                client,
                "abandoned",
                name,
                &format!(
                    "left VM {name}, which takes nothing in and so was not told: the command ends when it learns of it; \
                     `banger vm logs {name}` may say why"
                ),
            ),
            _ => {}
        }
        return Ok(code);
    }
    match ending {
        Ending::Failed(error) => Err(Failure::NotRun(Box::new(error))),
        Ending::Unwritable(errno) => Err(Failure::io(ErrorKind::Host, "failed to write the command's output", &errno)),
        Ending::Lost(reason) => {
            let mut error = WireError::new(ErrorKind::Lost, reason)
                .context(format!("lost the connection to VM {name} while the command ran"));
            error.chain.extend(state_of(client, vm).await);
            Err(Failure::from(error).hint(format!("`banger vm show {name}` and `banger vm logs {name}` may say why")))
        }
        Ending::Exited(_)
        | Ending::Detached
        | Ending::Abandoned
        | Ending::Terminated
        | Ending::BrokenPipe
        | Ending::HungUp => Ok(0),
    }
}

/// A command was left before its end. Said after a ^C, which a terminal shows at the start of a line that is not finished.
fn left(client: &Client, event: &str, name: &VmName, text: &str) {
    if client.output.json {
        client.output.event(&json!({ "event": event, "name": name, "message": text }));
    } else {
        say(&format!("\n{text}"));
    }
}

/// What the daemon, if it runs, knows of a VM that we lost.
async fn state_of(client: &Client, vm: &VmId) -> Option<String> {
    let ask = client.ask_running(RequestBody::ShowVm { vm: reference(vm)? });
    match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(Reply::Vm(view))) => Some(match view.last_error {
            Some(error) => format!("the VM is {}: {error}", view.state.as_str()),
            None => format!("the VM is {}", view.state.as_str()),
        }),
        _ => None,
    }
}

/// Makes sure that a VM made with `--rm` is gone. The daemon deletes it by itself; this is for the user who looks at once.
pub(super) async fn remove(client: &Client, vm: VmId, name: &VmName) {
    let Some(reference) = reference(&vm) else { return };
    let body = RequestBody::DeleteVms { vms: vec![reference], force: Force::Yes, only_ephemeral: true };
    let answer = tokio::select! {
        answer = tokio::time::timeout(REMOVE_DEADLINE, client.ask_running(body)) => answer,
        _ = tokio::signal::ctrl_c() => {
            let error = WireError::new(ErrorKind::Cancelled, "nobody waited for it");
            Ok(Err(error.into()))
        }
    };
    let problem = match answer {
        Ok(Ok(Reply::Outcomes(outcomes))) => outcomes
            .into_iter()
            .find_map(|outcome| outcome.result.err())
            // The daemon was faster.
            .filter(|error| error.kind != ErrorKind::NotFound)
            .map(|error| error.to_string()),
        Ok(Ok(_)) => None,
        Ok(Err(Failure::Error(error))) if error.kind == ErrorKind::NotFound => None,
        Ok(Err(Failure::Error(error))) => Some(error.to_string()),
        Ok(Err(_)) => None,
        Err(_) => Some("bangerd did not answer".to_owned()),
    };
    if let Some(problem) = problem {
        client.output.warn(&format!(
            "VM {name} may still be there ({problem}); bangerd deletes it when it can, `banger vm delete --force {name}` now"
        ));
    }
}

/// An id is a reference to itself.
fn reference(vm: &VmId) -> Option<VmRef> {
    vm.to_string().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn what_is_run() {
        let argv = |words: &[&str]| arguments(os(words));
        let given = ExecCommand::Image { entrypoint: None, command: argv(&["ls", "-l"]) };
        assert_eq!(run_command(os(&["ls", "-l"]), None, false), given);
        assert_eq!(run_command(vec![], None, true), ExecCommand::LoginShell);
        assert_eq!(run_command(vec![], None, false), ExecCommand::Image { entrypoint: None, command: vec![] });
        assert_eq!(
            run_command(os(&["x"]), Some("python".into()), false),
            ExecCommand::Image { entrypoint: Some(argv(&["python"])), command: argv(&["x"]) }
        );
        assert_eq!(run_command(os(&["x"]), Some("".into()), false), ExecCommand::Argv(argv(&["x"])));
    }

    #[test]
    fn a_terminal_has_a_kind() {
        assert_eq!(environment(vec![("TERM".into(), "dumb".into())], true).len(), 1);
        assert!(environment(vec![], true).iter().any(|(key, value)| key == "TERM" && !value.is_empty()));
        assert!(environment(vec![], false).is_empty());
    }
}
