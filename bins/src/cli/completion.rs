//! Completion in a shell: the script that `banger completion SHELL` prints asks this program for every word, and this program
//! asks the daemon for names. Starts no daemon, says nothing on stderr, and never keeps a prompt waiting for long.

use super::args::Cli;
use super::client::Client;
use super::failure::{Failure, Outcome};
use super::output::Output;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use messages::error::ErrorKind;
use messages::image::{CatalogEntry, ImageView, KernelView};
use messages::reply::Reply;
use messages::request::RequestBody;
use messages::vm::VmView;
use std::ffi::OsString;
use std::time::Duration;

const PROGRAM: &str = "banger";
/// Set by the script to the name of its shell. One of our own: other programs of the same kind use `COMPLETE`.
const VARIABLE: &str = "BANGER_COMPLETE";
/// How long the daemon may take for its names. Whoever has pressed Tab waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints the script.
pub(super) fn run(output: Output, shell: Shell) -> Outcome {
    let shells = Shells::builtins();
    let completer = shells
        .completer(&shell.to_string())
        .ok_or_else(|| Failure::new(ErrorKind::Internal, format!("there is no completion for {shell}")))?;
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::io(ErrorKind::Internal, "failed to write the completion script", error)
    };
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script).map_err(|error| failed(&error))?;
    let script = String::from_utf8(script).map_err(|error| failed(&error))?;
    output.data(&script)?;
    Ok(0)
}

/// Answers a script, where it is one that asks. Comes before anything else: it clears the variable for programs that we start.
///
/// # Errors
/// An unknown shell; a stdout that takes nothing.
pub(super) fn answer(arguments: &[OsString]) -> clap::error::Result<bool> {
    let here = std::env::current_dir().ok();
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).try_complete(arguments, here.as_deref())
}

/// VMs, by name.
pub(super) fn vms() -> Vec<CompletionCandidate> {
    names([RequestBody::ListVms])
}

/// Images on this host.
pub(super) fn images() -> Vec<CompletionCandidate> {
    names([RequestBody::ListImages])
}

/// Images that can be pulled.
pub(super) fn image_catalog() -> Vec<CompletionCandidate> {
    names([RequestBody::ImageCatalog])
}

/// Images that a VM can be made from.
pub(super) fn image_references() -> Vec<CompletionCandidate> {
    names([RequestBody::ListImages, RequestBody::ImageCatalog])
}

/// Kernels on this host.
pub(super) fn kernels() -> Vec<CompletionCandidate> {
    names([RequestBody::ListKernels])
}

/// Kernels that can be pulled.
pub(super) fn kernel_catalog() -> Vec<CompletionCandidate> {
    names([RequestBody::KernelCatalog])
}

/// Kernels that a VM can boot.
pub(super) fn kernel_references() -> Vec<CompletionCandidate> {
    names([RequestBody::ListKernels, RequestBody::KernelCatalog])
}

/// What a daemon that runs answers to these; nothing where anything is amiss: this is no place to complain.
fn names<const N: usize>(bodies: [RequestBody; N]) -> Vec<CompletionCandidate> {
    let Ok(client) = Client::from_env(Output { json: false, quiet: true }) else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let asking = async {
        let mut found: Vec<(String, String)> = Vec::new();
        for body in bodies {
            let Ok(reply) = client.ask_running(body).await else { break };
            found.extend(described(&reply));
        }
        found
    };
    let mut found = runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await.unwrap_or_default() });
    // An image of the catalog that is present comes twice; stable, so that what is present describes it.
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found.dedup_by(|one, other| one.0 == other.0);
    found.into_iter().map(|(name, about)| CompletionCandidate::new(name).help(Some(about.into()))).collect()
}

/// Each name with a word about it, which most shells show beside it.
fn described(reply: &Reply) -> Vec<(String, String)> {
    let vm = |view: &VmView| (view.name.to_string(), format!("{}, {}", view.state.as_str(), view.image));
    let image = |view: &ImageView| (view.name.to_string(), "on this host".to_owned());
    let kernel = |view: &KernelView| (view.name.to_string(), format!("on this host, {}", view.version));
    let entry = |entry: &CatalogEntry| (entry.name.clone(), entry.description.clone());
    match reply {
        Reply::Vms(views) => views.iter().map(|view| vm(view)).collect(),
        Reply::Images(views) => views.iter().map(image).collect(),
        Reply::Kernels(views) => views.iter().map(kernel).collect(),
        Reply::Catalog(entries) => entries.iter().map(entry).collect(),
        _ => Vec::new(),
    }
}
