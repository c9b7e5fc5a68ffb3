//! `banger image build`: steps run in a VM that is made for them, and what its root is then becomes the image.
//!
//! ```text
//!   Containerfile or script ─▶ steps ─▶ an ephemeral VM, held by an operation of ours ─▶ each step an operation ─▶ commit
//! ```
//! However this ends, the VM ends with the operation that holds it: there is nothing to clean up.

mod containerfile;
mod context;
mod ignored;
mod operation;
mod pattern;
mod settings;
mod source;
mod words;

use super::args::BuildImageArgs;
use super::client::{Absent, Answer, Client, unexpected};
use super::failure::{Failure, Outcome};
use super::{artifacts, vm_run};
use containerfile::{Action, Recipe, Step};
use context::Marks;
use ignored::Ignored;
use messages::error::{ErrorKind, WireError};
use messages::guest::{AgentTool, ArgBytes, ExecCommand, ExecSpec, ExitStatus};
use messages::ids::{ImageName, Reference, VmId, VmRef};
use messages::image::ImageConfig;
use messages::reply::Reply;
use messages::request::RequestBody;
use messages::vm::{Lifetime, Readiness, RestartPolicy, VmSpec};
use serde_json::json as value_of;
use settings::Settings;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Where a script lies while it runs: in memory, so it never gets into the image.
const SCRIPT: &str = "/run/banger-build-script";

/// Builds an image.
pub(super) async fn run(client: &Client, args: BuildImageArgs) -> Outcome {
    // Everything that can be found wrong without a VM.
    let plan = Plan::read(&args)?;
    // From here on, and to the end: once tokio has taken the signal over, one that nobody waits for just then is lost.
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|error| Failure::io(ErrorKind::Host, "failed to set up signals", &error))?;
    if let Some(here) = existing(client, &args.name).await? {
        return Err(Failure::new(ErrorKind::Conflict, format!("an image called `{here}` is here already"))
            .hint(format!("choose another name, or remove it with `banger image delete {here}`")));
    }
    let spec = VmSpec {
        name: None,
        image: Some(plan.from.clone()),
        kernel: None,
        vcpus: args.vcpu,
        memory_mib: args.memory,
        disk_bytes: args.disk_size,
        network: args.net,
        net_allow: Vec::new(),
        labels: vec![("banger.build".to_owned(), args.name.to_string())],
        restart: RestartPolicy::No,
        lifetime: Lifetime::Ephemeral,
    };
    let exec = exec(ExecCommand::Tool(AgentTool::Hold), true);
    let body = RequestBody::RunVm { spec, wait: Some(Readiness::System), exec, timeout_ms: None };
    let (vm, vm_name, held) = match client.call(Absent::Start, body).await? {
        Answer { reply: Reply::Attached { vm, name, .. }, descriptor: Some(socket) } => (vm, name, socket),
        Answer { reply, .. } => return Err(unexpected(&reply)),
    };
    let built = tokio::select! {
        biased;
        _ = interrupt.recv() => Err(Failure::interrupted("the build")),
        built = build(client, args.name, plan, vm) => built,
    };
    // The VM goes with the operation that holds it; this is for the user who looks at once.
    drop(held);
    vm_run::remove(client, vm, &vm_name).await;
    artifacts::pulled_image(client, built?)
}

/// Runs the steps, and makes the image.
async fn build(client: &Client, name: ImageName, plan: Plan, vm: VmId) -> Result<Reply, Failure> {
    let vm: VmRef = vm.to_string().parse().map_err(|error| Failure::io_only(ErrorKind::Internal, &error))?;
    let mut build = Build {
        client,
        vm,
        settings: Settings::of_base(base_config(client, &plan.from).await?),
        context: plan.context.into(),
        ignored: plan.ignored.into(),
    };
    let count = plan.steps.len();
    for (index, step) in plan.steps.iter().enumerate() {
        if client.output.json {
            client.output.event(&value_of!({ "event": "step", "number": index + 1, "of": count, "text": step.text }));
        } else {
            client.output.remark(&format!("step {} of {count}: {}", index + 1, step.text));
        }
        build.step(step).await.map_err(|failure| of_line(failure, step))?;
    }
    let body = RequestBody::CommitImage {
        vm: build.vm,
        name,
        config: Some(build.settings.config),
        source: Some(format!("build:{}", plan.from)),
    };
    client.ask(body).await
}

/// What is to be done, checked as far as that is possible from here.
struct Plan {
    from: Reference,
    steps: Vec<Step>,
    context: PathBuf,
    ignored: Ignored,
}

impl Plan {
    fn read(args: &BuildImageArgs) -> Result<Self, Failure> {
        let (from, steps, file) = match (&args.file, &args.script) {
            (Some(file), None) => {
                let text = String::from_utf8(source(file)?).map_err(|error| {
                    Failure::io(ErrorKind::Usage, format!("`{}` is no text", file.display()), &error)
                })?;
                let Recipe { from, steps } = containerfile::parse(&text).map_err(|error| {
                    Failure::io(ErrorKind::Usage, format!("`{}` cannot be built", file.display()), &error)
                })?;
                let named = from.parse().map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?;
                (args.from.clone().unwrap_or(named), steps, file)
            }
            (None, Some(script)) => {
                let from = args.from.clone().ok_or_else(|| Failure::usage("`--script` needs `--from IMAGE`"))?;
                let steps = script_steps(script, source(script)?);
                return Ok(Self { from, steps, context: PathBuf::new(), ignored: Ignored::default() });
            }
            _ => return Err(Failure::usage("give either `--file CONTAINERFILE` or `--script FILE`")),
        };
        let context = match &args.context {
            Some(context) => context.clone(),
            None => file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned(),
        };
        if !context.is_dir() {
            return Err(Failure::usage(format!("the context `{}` is not a directory", context.display())));
        }
        let ignored = Ignored::read(&context, Some(file)).map_err(usage)?;
        Ok(Self { from, steps, context, ignored })
    }
}

/// A Containerfile's or a script's bytes.
fn source(path: &Path) -> Result<Vec<u8>, Failure> {
    source::named(path)
        .map_err(|error| Failure::io(ErrorKind::Usage, format!("failed to read `{}`", path.display()), &error))
}

/// A script is copied in and run. Without a first line of its own it is one for the shell, and ends at its first error.
fn script_steps(path: &Path, text: Vec<u8>) -> Vec<Step> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let argv: &[&str] = if text.starts_with(b"#!") { &[SCRIPT] } else { &["/bin/sh", "-e", SCRIPT] };
    let run = Action::Run(argv.iter().map(|word| (*word).to_owned()).collect());
    [(Action::Script(text), format!("copy {name}")), (run, format!("run {name}"))]
        .into_iter()
        .map(|(action, text)| Step { line: 0, text, action })
        .collect()
}

async fn existing(client: &Client, name: &ImageName) -> Result<Option<ImageName>, Failure> {
    let image = name.as_str().parse().map_err(|error| Failure::io_only(ErrorKind::Internal, &error))?;
    match client.ask(RequestBody::ShowImage { image }).await {
        Ok(Reply::Image(view)) => Ok(Some(view.name)),
        Ok(other) => Err(unexpected(&other)),
        Err(Failure::Error(error)) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(other) => Err(other),
    }
}

async fn base_config(client: &Client, from: &Reference) -> Result<ImageConfig, Failure> {
    match client.ask(RequestBody::ShowImage { image: from.clone() }).await? {
        Reply::Image(view) => Ok(view.config),
        other => Err(unexpected(&other)),
    }
}

fn exec(command: ExecCommand, stdin: bool) -> ExecSpec {
    ExecSpec { stdin, ..ExecSpec::new(command) }
}

/// Where in the Containerfile it went wrong.
fn of_line(failure: Failure, step: &Step) -> Failure {
    let place = if step.line > 0 { format!("line {}: `{}`", step.line, step.text) } else { format!("`{}`", step.text) };
    match failure {
        Failure::Error(error) if error.kind != ErrorKind::Cancelled => {
            Failure::Error(Box::new(error.context(format!("{place} failed, and no image was made"))))
        }
        other => other,
    }
}

/// The VM, and how programs will be run in the image.
struct Build<'a> {
    client: &'a Client,
    vm: VmRef,
    settings: Settings,
    context: Arc<Path>,
    ignored: Arc<Ignored>,
}

impl Build<'_> {
    async fn step(&mut self, step: &Step) -> Result<(), Failure> {
        match &step.action {
            Action::Run(argv) => {
                let argv = argv.iter().map(|word| ArgBytes(word.clone().into_bytes())).collect();
                let spec = ExecSpec {
                    env: self.settings.variables(),
                    workdir: self.settings.config.workdir.clone(),
                    user: self.settings.config.user.clone(),
                    ..exec(ExecCommand::Argv(argv), false)
                };
                self.operation(spec, None).await
            }
            Action::Script(text) => self.unpack(SCRIPT, true, context::pack_script(text).map_err(usage)?).await,
            Action::Copy { sources, destination, owner, mode } => {
                let sources = sources.iter().map(|source| self.settings.expand(source));
                let sources = sources.collect::<Result<Vec<_>, _>>().map_err(usage)?;
                let destination = self.settings.absolute(&self.settings.expand(destination).map_err(usage)?);
                self.copy(sources, &destination, Marks { owner: *owner, mode: *mode }).await
            }
            Action::Env(text) => self.settings.env(text).map_err(usage),
            Action::Workdir(path) => {
                let path = self.settings.absolute(&self.settings.expand(path).map_err(usage)?);
                // An empty archive: what is left of unpacking it is the directory.
                self.copy(Vec::new(), &path, Marks::default()).await?;
                self.settings.config.workdir = Some(path);
                Ok(())
            }
            Action::User(user) => {
                self.settings.config.user = Some(self.settings.expand(user).map_err(usage)?);
                Ok(())
            }
            Action::Cmd(argv) => {
                self.settings.cmd(argv);
                Ok(())
            }
            Action::Entrypoint(argv) => {
                self.settings.entrypoint(argv);
                Ok(())
            }
        }
    }

    async fn copy(&self, sources: Vec<String>, destination: &str, marks: Marks) -> Result<(), Failure> {
        let (context, ignored) = (Arc::clone(&self.context), Arc::clone(&self.ignored));
        // In a thread of its own: a large context takes long, and an interrupt is to be heard meanwhile.
        let packing = tokio::task::spawn_blocking(move || context::pack(&context, &ignored, &sources, marks));
        let packed = packing.await.map_err(|error| Failure::io_only(ErrorKind::Internal, &error))?.map_err(usage)?;
        let as_file = packed.one_file && !destination.ends_with('/');
        self.unpack(destination, as_file, packed.archive).await
    }

    async fn unpack(&self, at: &str, as_file: bool, archive: File) -> Result<(), Failure> {
        let tool = AgentTool::Unpack { at: ArgBytes(at.as_bytes().to_vec()), as_file };
        self.operation(exec(ExecCommand::Tool(tool), true), Some(archive)).await
    }

    async fn operation(&self, exec: ExecSpec, input: Option<File>) -> Result<(), Failure> {
        let body = RequestBody::ExecVm { vm: self.vm.clone(), exec, wait: None };
        let socket = match self.client.call(Absent::Fail, body).await? {
            Answer { reply: Reply::Attached { .. }, descriptor: Some(socket) } => socket,
            Answer { reply, .. } => return Err(unexpected(&reply)),
        };
        let status = operation::run(operation::stream(socket)?, input, self.client.output).await?;
        match status {
            ExitStatus::Code(0) => Ok(()),
            ExitStatus::Code(code) => Err(WireError::new(ErrorKind::Guest, format!("it exited with {code}")).into()),
            ExitStatus::Signal(signal) => {
                Err(WireError::new(ErrorKind::Guest, format!("it was ended by signal {signal}")).into())
            }
            ExitStatus::Unknown => Err(WireError::new(ErrorKind::Lost, "nobody knows how it ended").into()),
        }
    }
}

fn usage(error: impl std::error::Error + 'static) -> Failure {
    Failure::io_only(ErrorKind::Usage, &error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_script_is_what_was_read_whatever_its_name_and_what_is_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let (elsewhere, beside) = (directory.path().join("elsewhere"), directory.path().join("beside"));
        std::fs::create_dir(&beside).unwrap();
        std::fs::write(&elsewhere, b"#!/bin/sh\n# \xff is no UTF-8\n").unwrap();
        std::fs::write(beside.join(".dockerignore"), "*\n[\n").unwrap();
        let script = beside.join("$HOME[1]*.sh");
        std::os::unix::fs::symlink(&elsewhere, &script).unwrap();
        let plan = Plan::read(&BuildImageArgs {
            name: "new".parse().unwrap(),
            from: Some("base".parse().unwrap()),
            script: Some(script),
            file: None,
            context: None,
            vcpu: None,
            memory: None,
            disk_size: None,
            net: messages::vm::NetworkMode::Nat,
        })
        .unwrap_or_else(|failure| panic!("{failure:?}"));
        let Action::Script(text) = &plan.steps[0].action else { panic!("{:?}", plan.steps) };
        assert_eq!(text, b"#!/bin/sh\n# \xff is no UTF-8\n");
        assert_eq!(plan.steps[1].action, Action::Run(vec![SCRIPT.to_owned()]));

        let mut archive = tar::Archive::new(context::pack_script(text).unwrap());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.header().mode().unwrap(), 0o755);
        let mut packed = Vec::new();
        entry.read_to_end(&mut packed).unwrap();
        assert_eq!(&packed, text);
    }
}
