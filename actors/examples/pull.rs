//! Pulls the default kernel (and image) into a state directory without a daemon:
//! `cargo run --release -p actors --example pull -- STATE_DIR [kernel|image|all] [MIRROR]`.

use actors::artifacts::{Cancel, Reporter};
use actors::catalog::Catalog;
use actors::images::{self, ImageStore};
use actors::kernels::{KernelStore, pull};
use messages::WireError;
use messages::reply::Stage;
use std::path::PathBuf;
use std::process::ExitCode;

#[expect(clippy::print_stderr, reason = "progress of a program run by hand")]
fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(state) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: pull STATE_DIR [kernel|image|all] [MIRROR]");
        return ExitCode::from(2);
    };
    let what = arguments.next().map_or_else(|| "all".to_owned(), |what| what.to_string_lossy().into_owned());
    let mirror = arguments.next().map(|mirror| mirror.to_string_lossy().into_owned());
    match run(&state, &what, mirror.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for hint in &error.hints {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(state: &std::path::Path, what: &str, mirror: Option<&str>) -> Result<(), WireError> {
    let catalog = Catalog::built_in();
    let cancel = Cancel::new();
    if what != "image" {
        let store = KernelStore::new(state.join("kernels"));
        let entry = catalog.kernel("debian-cloud-6.12").map_err(|error| WireError::from(&error))?;
        pull::pull(&store, entry, mirror, &cancel, &reporter(Stage::KernelPull))
            .map_err(|error| WireError::from(&error))?;
    }
    if what != "kernel" {
        let store = ImageStore::new(state.join("images"));
        let entry = catalog.image("debian-bookworm").map_err(|error| WireError::from(&error))?;
        images::pull::pull(&store, entry, &entry.name, mirror, &cancel, &reporter(Stage::ImagePull))
            .map_err(|error| WireError::from(&error))?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "progress of a program run by hand")]
fn reporter(stage: Stage) -> Reporter {
    Reporter::new(stage, |progress| {
        let seconds = progress.elapsed_us / 100_000;
        let amount = progress.done.map(|done| format!(" {} MiB", done >> 20)).unwrap_or_default();
        eprintln!("{:>4}.{} s {}: {}{amount}", seconds / 10, seconds % 10, progress.stage.as_str(), progress.detail);
    })
}
