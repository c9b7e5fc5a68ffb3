//! `banger vm ssh` and `banger ssh-config`: the user's own `ssh`, told how to reach a VM. Its connection comes from the daemon
//! and is handed to it; nothing here speaks SSH.

mod known_hosts;
mod settings;
mod user_config;

use super::args::{SshArgs, SshConfigArgs};
use super::client::{Absent, Client, unexpected};
use super::failure::{Failure, Outcome};
use actors::config::Config;
use actors::paths;
use actors::ssh::KeyPlace;
use messages::error::ErrorKind;
use messages::ids::VmRef;
use messages::reply::Reply;
use messages::request::RequestBody;
use messages::vm::{VmState, VmView};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::json;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variables that make an instance: `ssh` may be run where they are not set.
const INSTANCE: [&str; 6] = [
    paths::STATE_DIR_ENV,
    paths::CACHE_DIR_ENV,
    paths::RUNTIME_DIR_ENV,
    paths::CONFIG_ENV,
    paths::ROOT_SOCKET_ENV,
    paths::LIBEXEC_ENV,
];

/// What `ssh` is told of this instance.
#[derive(Clone, Debug)]
struct SshFiles {
    program: PathBuf,
    environment: Vec<(String, String)>,
    key: PathBuf,
    known_hosts: PathBuf,
    config: PathBuf,
}

impl SshFiles {
    fn of(client: &Client) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::io(ErrorKind::Host, "failed to find this program", &error))?;
        let config =
            Config::load(&client.paths.config_file).map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?.config;
        let variable = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let set = INSTANCE.iter().filter_map(|name| Some(((*name).to_owned(), variable(name)?)));
        Ok(Self {
            program,
            environment: set.collect(),
            key: KeyPlace::new(&config, &client.paths).path,
            known_hosts: client.paths.ssh_dir().join("known_hosts"),
            config: client.paths.ssh_dir().join("config"),
        })
    }
}

/// `banger vm ssh`: becomes the user's ssh.
pub(super) async fn ssh(client: &Client, args: SshArgs) -> Outcome {
    let files = SshFiles::of(client)?;
    let view = match client.ask(RequestBody::ShowVm { vm: args.vm }).await? {
        Reply::Vm(view) => view,
        other => return Err(unexpected(&other)),
    };
    check(&view)?;
    known_hosts::update(client, &files.known_hosts).await?;
    let mut command = Command::new("ssh");
    command.args(args.tty.then_some("-t"));
    command.args(settings::arguments(&files, &view.id.to_string(), view.name.as_str()).map_err(unquotable)?);
    if let Some(line) = settings::remote_command(args.argv) {
        command.arg("--").arg(line);
    }
    let error = command.exec();
    Err(match error.kind() {
        io::ErrorKind::NotFound => Failure::new(ErrorKind::Host, "there is no `ssh` on the PATH").hint(format!(
            "install it (Debian: `apt install openssh-client`), or use `banger vm exec -t {} -- sh`",
            view.name
        )),
        _ => Failure::io(ErrorKind::Host, "failed to run `ssh`", &error),
    })
}

fn unquotable(error: settings::Unquotable) -> Failure {
    Failure::io_only(ErrorKind::Usage, &error)
}

/// What would only make `ssh` fail with words of its own.
fn check(view: &VmView) -> Result<(), Failure> {
    match view.state {
        VmState::Starting | VmState::Running => Ok(()),
        VmState::Stopped | VmState::Stopping | VmState::Failed | VmState::Deleting => {
            Err(Failure::new(ErrorKind::WrongState, format!("VM {} is {}", view.name, view.state.as_str()))
                .hint(format!("`banger vm start {}` starts it", view.name)))
        }
    }
}

/// `banger vm connect`, for ssh's ProxyCommand: hands the connection over on stdout (ProxyUseFdpass), and ends.
pub(super) async fn connect(client: &Client, host: &str) -> Outcome {
    let vm: VmRef = settings::vm_of_host(host).parse().map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?;
    let files = SshFiles::of(client)?;
    known_hosts::update(client, &files.known_hosts).await?;
    let answer = client.call(Absent::Start, RequestBody::ConnectSsh { vm }).await?;
    match (answer.reply, answer.descriptor) {
        (Reply::Connected { .. }, Some(connection)) => hand_over(&connection),
        (other, _) => Err(unexpected(&other)),
    }
}

fn hand_over(connection: &OwnedFd) -> Outcome {
    let descriptors = [connection.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    // One byte goes with it, as OpenSSH's monitor_fdpass.c wants.
    let sent = sendmsg::<()>(io::stdout().as_raw_fd(), &[IoSlice::new(&[0])], &message, MsgFlags::MSG_NOSIGNAL, None);
    sent.map(|_| 0).map_err(|errno| {
        Failure::io(ErrorKind::Usage, "stdout takes no connection", &errno)
            .hint("this command is for ssh's `ProxyCommand`, with `ProxyUseFdpass yes`")
    })
}

/// `banger ssh-config`. Asks no daemon: what else `ssh` reads is written before each connection.
pub(super) fn config(client: &Client, args: SshConfigArgs) -> Outcome {
    let user_config = user_config_path()?;
    let files = SshFiles::of(client)?;
    let include = include(&files.config)?;
    let edit = match (args.install, args.uninstall) {
        (_, true) => user_config::Edit::Uninstall,
        (true, false) => user_config::Edit::Install { include: include.clone() },
        (false, false) => {
            write_config(&files)?;
            if client.output.json {
                client.output.value(&json!({ "include": include, "config": files.config }))?;
            } else {
                client.output.data(&format!("{include}\n"))?;
            }
            return Ok(0);
        }
    };
    if edit != user_config::Edit::Uninstall {
        write_config(&files)?;
    }
    let changed = user_config::apply(&user_config, &edit).map_err(|error| {
        let failure = Failure::io_only(ErrorKind::Host, &error);
        if edit == user_config::Edit::Uninstall { failure } else { failure.hint(format!("the line is `{include}`")) }
    })?;
    if client.output.json {
        client.output.value(&json!({ "file": user_config, "changed": changed, "include": include }))?;
    } else {
        let word = match (&edit, changed) {
            (user_config::Edit::Install { .. }, true) => "added to",
            (user_config::Edit::Install { .. }, false) => "was in",
            (user_config::Edit::Uninstall, true) => "removed from",
            (user_config::Edit::Uninstall, false) => "was not in",
        };
        client.output.remark(&format!("`{include}` {word} {}", user_config.display()));
    }
    Ok(0)
}

fn include(config: &Path) -> Result<String, Failure> {
    // `Include` takes patterns (glob(7)).
    let text = config.to_str().filter(|text| !text.contains(['"', '\n', '\r', '\\', '*', '?', '[']));
    let text = text.ok_or_else(|| {
        Failure::usage(format!("the path `{}` has a character that an ssh config cannot hold", config.display()))
    })?;
    Ok(format!("Include \"{text}\""))
}

/// Where `ssh` itself looks: in the home of the password database, whatever HOME says; that is HOME for all but tests.
fn user_config_path() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    home.map(|home| home.join(".ssh/config")).ok_or_else(|| Failure::usage("HOME is not set"))
}

fn write_config(files: &SshFiles) -> Result<(), Failure> {
    let text = settings::config_file(files).map_err(unquotable)?;
    if let Some(dir) = files.config.parent() {
        make_private_dir(dir)?;
    }
    replace_if_changed(&files.config, text.as_bytes())
        .map_err(|error| Failure::io(ErrorKind::Host, format!("failed to write `{}`", files.config.display()), &error))
}

fn make_private_dir(dir: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::io(ErrorKind::Host, format!("failed to make `{}`", dir.display()), &error))
}

/// Readers see the old file or the new one, and the disk is left alone where they are the same.
fn replace_if_changed(path: &Path, content: &[u8]) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    user_config::replace(path, content, 0o600)
}
