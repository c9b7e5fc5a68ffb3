//! Decides what a request to run a command means in this guest: program, arguments, environment, directory, user. Starts
//! nothing.

use crate::sys::Identity;
use crate::systemd;
use crate::users::{Account, Database, UserError};
use messages::error::{ErrorKind, WireError};
use messages::guest::{AgentTool, ArgBytes, ExecCommand, ExecSpec};
use messages::image::ImageConfig;
use messages::limits::LIST_MAX;
use nix::unistd::{Gid, Uid};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Where programs are looked for when neither image nor request says so.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// This program, also where its file is long gone with the initramfs.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// What a terminal is when the request does not say.
const DEFAULT_TERM: &str = "xterm-256color";

/// A command, ready to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Found on the PATH already.
    pub program: PathBuf,
    pub argv0: OsString,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub directory: PathBuf,
    /// `None`: as the agent itself (process machine without root).
    pub identity: Option<Identity>,
}

/// Where commands run.
#[derive(Clone, Debug)]
pub enum Place {
    /// The guest's root, which is this process's root as well.
    Guest,
    /// The process machine: a directory of the host, as the user that the agent runs as.
    Process { directory: PathBuf },
}

/// Says why a command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{0} has a NUL byte")]
    Nul(&'static str),
    #[error("the command has no program")]
    Empty,
    #[error("more than {LIST_MAX} {0}")]
    TooMany(&'static str),
    #[error("`{0}` is not a name for an environment variable")]
    EnvironmentName(String),
    #[error(transparent)]
    User(#[from] UserError),
    #[error("the process machine runs commands only as the user that it runs as")]
    OtherUser,
    #[error("`{}` is not a directory in the guest", .0.display())]
    NoDirectory(PathBuf),
    #[error("{}: command not found", .0.to_string_lossy())]
    NotFound(OsString),
    #[error("{}: no such file", .0.display())]
    NoFile(PathBuf),
    #[error("{}: is not executable", .0.display())]
    NotExecutable(PathBuf),
}

impl PlanError {
    /// As it goes to the client.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        let kind = match self {
            Self::NotFound(_) | Self::NoFile(_) => ErrorKind::NotFound,
            Self::NotExecutable(_) => ErrorKind::Guest,
            _ => ErrorKind::Usage,
        };
        WireError::from_error(kind, self)
    }
}

/// Decides everything about a command.
///
/// # Errors
/// [`PlanError`].
pub fn plan(exec: &ExecSpec, config: &ImageConfig, place: &Place) -> Result<Plan, PlanError> {
    check(exec)?;
    if let ExecCommand::Tool(tool) = &exec.command {
        return Ok(own(tool, place));
    }
    let account = account(exec, config, place)?;
    let environment = environment(exec, config, &account, place);
    let directory = directory(exec, config, &account, place)?;
    let command = match &exec.command {
        ExecCommand::Argv(argv) => argv.iter().map(os_string).collect(),
        ExecCommand::LoginShell | ExecCommand::Tool(_) => Vec::new(),
        ExecCommand::Image { entrypoint, command } => image_command(entrypoint.as_deref(), command, config),
    };
    let (program, argv0, arguments) = match command.split_first() {
        Some((first, rest)) => (find_program(first, &environment, &directory)?, first.clone(), rest.to_vec()),
        None if matches!(exec.command, ExecCommand::Argv(_)) => return Err(PlanError::Empty),
        None => {
            let shell = find_program(OsStr::new(&account.shell), &environment, &directory)
                .or_else(|_| find_program(OsStr::new(crate::users::DEFAULT_SHELL), &environment, &directory))?;
            // A leading hyphen makes it a login shell (login(1)).
            let name = shell.file_name().unwrap_or(OsStr::new("sh")).to_string_lossy();
            (shell.clone(), format!("-{name}").into(), Vec::new())
        }
    };
    let identity = match place {
        Place::Guest => Some(account.identity),
        Place::Process { .. } => None,
    };
    Ok(Plan { program, argv0, arguments, environment, directory, identity })
}

/// The agent itself, as root of the place; `main` knows the arguments.
fn own(tool: &AgentTool, place: &Place) -> Plan {
    let (root, identity) = match place {
        Place::Guest => {
            (Path::new("/"), Some(Identity { uid: Uid::from_raw(0), gid: Gid::from_raw(0), groups: Vec::new() }))
        }
        Place::Process { directory } => (directory.as_path(), None),
    };
    let mut arguments: Vec<OsString> = Vec::new();
    match tool {
        AgentTool::Archive => arguments.extend(["--archive".into(), root.into()]),
        AgentTool::Unpack { at, as_file } => {
            // In the process machine a path is meant from its directory.
            let at = PathBuf::from(os_string(at));
            let at = root.join(at.strip_prefix("/").unwrap_or(&at));
            arguments.extend([if *as_file { "--unpack-file" } else { "--unpack" }.into(), at.into()]);
        }
        AgentTool::Hold => arguments.push("--hold".into()),
    }
    Plan {
        program: OWN_PROGRAM.into(),
        argv0: "banger-agent".into(),
        arguments,
        environment: Vec::new(),
        directory: root.to_owned(),
        identity,
    }
}

fn check(exec: &ExecSpec) -> Result<(), PlanError> {
    let lists: Vec<&[ArgBytes]> = match &exec.command {
        ExecCommand::Argv(argv) => vec![argv],
        ExecCommand::Tool(AgentTool::Unpack { at, .. }) => vec![std::slice::from_ref(at)],
        ExecCommand::LoginShell | ExecCommand::Tool(_) => Vec::new(),
        ExecCommand::Image { entrypoint, command } => vec![entrypoint.as_deref().unwrap_or_default(), command],
    };
    for list in lists {
        if list.len() > LIST_MAX {
            return Err(PlanError::TooMany("arguments"));
        }
        if list.iter().any(|argument| argument.0.contains(&0)) {
            return Err(PlanError::Nul("an argument"));
        }
    }
    if exec.env.len() > LIST_MAX {
        return Err(PlanError::TooMany("environment variables"));
    }
    if exec.env.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(PlanError::Nul("an environment variable"));
    }
    if let Some((name, _)) = exec.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        return Err(PlanError::EnvironmentName(name.clone()));
    }
    if exec.workdir.as_ref().is_some_and(|directory| directory.contains('\0')) {
        return Err(PlanError::Nul("the working directory"));
    }
    Ok(())
}

fn os_string(argument: &ArgBytes) -> OsString {
    OsString::from_vec(argument.0.clone())
}

/// As docker has it: an entrypoint named outright drops the image's Cmd. But what the image names as its init is PID 1 already.
fn image_command(entrypoint: Option<&[ArgBytes]>, command: &[ArgBytes], config: &ImageConfig) -> Vec<OsString> {
    let is_pid_1 = systemd::names_init(config);
    let mut argv: Vec<OsString> = match entrypoint {
        Some(entrypoint) => entrypoint.iter().map(os_string).collect(),
        None if is_pid_1 => Vec::new(),
        None => config.entrypoint.iter().map(OsString::from).collect(),
    };
    if !command.is_empty() {
        argv.extend(command.iter().map(os_string));
    } else if entrypoint.is_none() && !is_pid_1 {
        argv.extend(config.cmd.iter().map(OsString::from));
    }
    argv
}

fn account(exec: &ExecSpec, config: &ImageConfig, place: &Place) -> Result<Account, PlanError> {
    let database = Database::read(Path::new("/"));
    match place {
        Place::Guest => {
            let of_image = config.user.as_deref().filter(|user| !user.is_empty());
            Ok(database.find(exec.user.as_deref().or(of_image).unwrap_or("0"))?)
        }
        Place::Process { .. } => {
            let own = database.find(&nix::unistd::geteuid().to_string())?;
            match &exec.user {
                Some(user) if database.find(user)?.identity.uid != own.identity.uid => Err(PlanError::OtherUser),
                _ => Ok(own),
            }
        }
    }
}

/// Base, user, image, request: each overrides those before it.
fn environment(exec: &ExecSpec, config: &ImageConfig, account: &Account, place: &Place) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &OsStr, value: &OsStr| match variables.iter_mut().find(|(other, _)| other == name) {
        Some((_, old)) => value.clone_into(old),
        None => variables.push((name.to_owned(), value.to_owned())),
    };
    let path = match place {
        Place::Guest => None,
        Place::Process { .. } => std::env::var_os("PATH"),
    };
    set("PATH".as_ref(), path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH)));
    set("HOME".as_ref(), account.home.as_os_str());
    set("USER".as_ref(), account.name.as_ref());
    set("LOGNAME".as_ref(), account.name.as_ref());
    set("SHELL".as_ref(), account.shell.as_ref());
    if exec.terminal.is_some() {
        set("TERM".as_ref(), DEFAULT_TERM.as_ref());
    }
    for entry in config.env.iter().filter(|entry| !entry.contains('\0')) {
        if let Some((name, value)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            set(name.as_ref(), value.as_ref());
        }
    }
    for (name, value) in &exec.env {
        set(name.as_ref(), value.as_ref());
    }
    variables
}

/// The request's directory must exist, the image's is made where it does not, as docker does; a home that does not is replaced by the
/// root.
fn directory(exec: &ExecSpec, config: &ImageConfig, account: &Account, place: &Place) -> Result<PathBuf, PlanError> {
    let base = match place {
        Place::Guest => Path::new("/"),
        Place::Process { directory } => directory.as_path(),
    };
    let of_image = config.workdir.as_ref().filter(|directory| !directory.is_empty());
    if let Some(wanted) = exec.workdir.as_ref().or(of_image) {
        let wanted = match place {
            Place::Guest => base.join(wanted),
            // What a tool has made for an absolute path lies in the machine's own directory.
            Place::Process { .. } => {
                let inner = base.join(wanted.trim_start_matches('/'));
                if inner.is_dir() { inner } else { base.join(wanted) }
            }
        };
        if exec.workdir.is_none() && matches!(place, Place::Guest) && !wanted.exists() {
            // Where it cannot be made, it is not there.
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&wanted).ok();
        }
        return if wanted.is_dir() { Ok(wanted) } else { Err(PlanError::NoDirectory(wanted)) };
    }
    match place {
        Place::Guest if account.home.is_dir() => Ok(account.home.clone()),
        _ => Ok(base.to_owned()),
    }
}

/// As a shell finds it, but in the command's own PATH and from its own directory.
fn find_program(name: &OsStr, environment: &[(OsString, OsString)], directory: &Path) -> Result<PathBuf, PlanError> {
    if name.is_empty() {
        return Err(PlanError::Empty);
    }
    if name.as_bytes().contains(&b'/') {
        let path = directory.join(name);
        return match std::fs::metadata(&path) {
            Err(_) => Err(PlanError::NoFile(path)),
            Ok(metadata) if is_program(&metadata) => Ok(path),
            Ok(_) => Err(PlanError::NotExecutable(path)),
        };
    }
    let path = environment.iter().find(|(variable, _)| variable == "PATH").map(|(_, value)| value.as_os_str());
    std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH)))
        .map(|entry| directory.join(entry).join(name))
        .find(|candidate| std::fs::metadata(candidate).is_ok_and(|metadata| is_program(&metadata)))
        .ok_or_else(|| PlanError::NotFound(name.to_owned()))
}

fn is_program(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<ArgBytes> {
        words.iter().map(|word| ArgBytes(word.as_bytes().to_vec())).collect()
    }

    fn here() -> Place {
        Place::Process { directory: std::env::temp_dir() }
    }

    fn value<'a>(plan: &'a Plan, name: &str) -> Option<&'a str> {
        plan.environment.iter().find(|(other, _)| other == name).and_then(|(_, value)| value.to_str())
    }

    #[test]
    fn a_command_is_found_on_the_path_and_keeps_its_name() {
        let plan =
            plan(&ExecSpec::new(ExecCommand::Argv(argv(&["sh", "-c", "true"]))), &ImageConfig::default(), &here())
                .unwrap();
        assert!(plan.program.is_absolute() && plan.program.ends_with("sh"));
        assert_eq!((plan.argv0.as_os_str(), plan.arguments.len()), (OsStr::new("sh"), 2));
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        let fails = |spec: &ExecSpec| plan(spec, &ImageConfig::default(), &here()).unwrap_err().to_wire();
        let missing = fails(&ExecSpec::new(ExecCommand::Argv(argv(&["no-such-program"]))));
        assert_eq!(
            (missing.kind, missing.to_string()),
            (ErrorKind::NotFound, "no-such-program: command not found".into())
        );
        assert_eq!(fails(&ExecSpec::new(ExecCommand::Argv(argv(&["/no/such/file"])))).kind, ErrorKind::NotFound);
        assert_eq!(fails(&ExecSpec::new(ExecCommand::Argv(argv(&["/etc/passwd"])))).kind, ErrorKind::Guest);
        assert_eq!(fails(&ExecSpec::new(ExecCommand::Argv(Vec::new()))).kind, ErrorKind::Usage);
        assert_eq!(fails(&ExecSpec::new(ExecCommand::Argv(argv(&["a\0b"])))).kind, ErrorKind::Usage);
        let mut elsewhere = ExecSpec::new(ExecCommand::LoginShell);
        elsewhere.workdir = Some("/no/such/directory".into());
        assert_eq!(fails(&elsewhere).kind, ErrorKind::Usage);
    }

    #[test]
    fn the_request_overrides_the_image_which_overrides_the_user() {
        let config =
            ImageConfig { env: vec!["A=image".into(), "B=image".into(), "junk".into()], ..ImageConfig::default() };
        let mut spec = ExecSpec::new(ExecCommand::Argv(argv(&["sh"])));
        spec.env = vec![("B".into(), "request".into())];
        let plan = plan(&spec, &config, &here()).unwrap();
        assert_eq!((value(&plan, "A"), value(&plan, "B")), (Some("image"), Some("request")));
        assert!(value(&plan, "HOME").is_some() && value(&plan, "TERM").is_none());
    }

    #[test]
    fn tools_are_this_program_whatever_the_image_says() {
        let config =
            ImageConfig { user: Some("nobody-knows".into()), workdir: Some("/gone".into()), ..ImageConfig::default() };
        let tool = AgentTool::Unpack { at: ArgBytes(b"/etc/x".to_vec()), as_file: true };
        let plan = plan(&ExecSpec::new(ExecCommand::Tool(tool)), &config, &here()).unwrap();
        assert_eq!(plan.program, Path::new("/proc/self/exe"));
        assert_eq!(plan.arguments, [OsString::from("--unpack-file"), std::env::temp_dir().join("etc/x").into()]);
        let guest = own(&AgentTool::Archive, &Place::Guest);
        assert_eq!(
            (guest.arguments.as_slice(), guest.identity.unwrap().uid),
            (["--archive".into(), "/".into()].as_slice(), Uid::from_raw(0))
        );
        let nul = AgentTool::Unpack { at: ArgBytes(b"/\0".to_vec()), as_file: false };
        assert!(super::plan(&ExecSpec::new(ExecCommand::Tool(nul)), &config, &here()).is_err());
    }

    #[test]
    fn an_init_is_not_run_twice() {
        let shell = |words: &[&str]| words.iter().map(|word| ArgBytes(word.as_bytes().to_vec())).collect::<Vec<_>>();
        for (entrypoint, cmd) in
            [(vec!["/sbin/init"], vec![]), (vec![], vec!["/sbin/init"]), (vec!["/sbin/init"], vec!["--x"])]
        {
            let list = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
            let config = ImageConfig { entrypoint: list(entrypoint), cmd: list(cmd), ..ImageConfig::default() };
            assert!(image_command(None, &[], &config).is_empty(), "{config:?}");
            assert_eq!(image_command(None, &shell(&["id"]), &config), ["id"], "{config:?}");
        }
    }

    #[test]
    fn entrypoint_and_cmd_combine_as_in_docker() {
        let config = ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..ImageConfig::default() };
        assert_eq!(image_command(None, &[], &config), ["e", "c"]);
        assert_eq!(image_command(None, &argv(&["x"]), &config), ["e", "x"]);
        assert_eq!(image_command(Some(&argv(&["o"])), &[], &config), ["o"]);
        assert_eq!(image_command(Some(&argv(&["o"])), &argv(&["x"]), &config), ["o", "x"]);
        assert!(image_command(None, &[], &ImageConfig::default()).is_empty());
    }

    #[test]
    fn a_login_shell_says_so_in_its_name() {
        let plan = plan(&ExecSpec::new(ExecCommand::LoginShell), &ImageConfig::default(), &here()).unwrap();
        assert!(plan.argv0.as_bytes().starts_with(b"-"), "{:?}", plan.argv0);
    }
}
