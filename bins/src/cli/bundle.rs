//! Bundles and imports: makes paths absolute, and packs what is exported. Of all that banger is, this alone writes the user's
//! file: beside its place first, under another name, so that there is a whole one or none.

use super::args::{ExportImageArgs, ImportImageArgs, ImportKernelArgs};
use super::client::{Absent, Client, unexpected};
use super::failure::{Failure, Outcome};
use super::progress::ProgressView;
use super::{human, json};
use actors::bundle::pack;
use messages::error::{ErrorKind, WireError};
use messages::ids::HostPath;
use messages::image::{ImageExport, KernelImport};
use messages::reply::{Progress, Reply, Stage};
use messages::request::RequestBody;
use serde_json::json as value_of;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often the progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// What anybody's new file gets, less the umask.
const MODE: u32 = 0o666;

/// `banger image import`.
pub(super) async fn import_image(client: &Client, args: ImportImageArgs) -> Outcome {
    let body = RequestBody::ImportImage { file: absolute(&args.file)?, name: args.name };
    match client.ask(body).await? {
        Reply::Image(view) => {
            if client.output.json {
                client.output.value(&json::image(&view))?;
            } else {
                client.output.data(&format!("{}\n", view.name))?;
            }
            Ok(0)
        }
        other => Err(unexpected(&other)),
    }
}

/// `banger kernel import`.
pub(super) async fn import_kernel(client: &Client, args: ImportKernelArgs) -> Outcome {
    let wanted = KernelImport {
        name: args.name,
        vmlinux: absolute(&args.vmlinux)?,
        modules: args.modules.as_deref().map(absolute).transpose()?,
        config: args.config.as_deref().map(absolute).transpose()?,
        command_line: args.cmdline,
    };
    match client.ask(RequestBody::ImportKernel(wanted)).await? {
        Reply::KernelDetails(details) => {
            if details.checked_by.is_none() {
                client.output.warn(
                    "whether guests boot on it could not be checked: give its configuration with --config, or build it with \
                     CONFIG_IKCONFIG",
                );
            }
            if client.output.json {
                client.output.value(&json::kernel_details(&details))?;
            } else {
                client.output.data(&format!("{}\n", details.kernel.name))?;
            }
            Ok(0)
        }
        other => Err(unexpected(&other)),
    }
}

/// `banger image export`.
pub(super) async fn export_image(client: &Client, args: ExportImageArgs) -> Outcome {
    let target = PathBuf::from(absolute(&args.file)?.as_str());
    // Before anything is done; once more when it is renamed.
    if target.is_dir() {
        return Err(Failure::usage(format!("`{}` is a directory: name the file in it", target.display())));
    }
    if !args.force && target.exists() {
        return Err(taken(&target));
    }
    let answer = client.call(Absent::Start, RequestBody::ExportImage { image: args.image }).await?;
    let (export, rootfs) = match (answer.reply, answer.descriptor) {
        (Reply::ImageExport(export), Some(descriptor)) => (export, File::from(descriptor)),
        (other, _) => return Err(unexpected(&other)),
    };
    let size = packed(client, export, rootfs, &target, args.force).await?;
    if client.output.json {
        client.output.value(&value_of!({ "file": target, "size_bytes": size }))?;
    } else {
        client.output.remark(&format!("{} written, {}", target.display(), human::size(size)));
    }
    Ok(0)
}

/// Packs on a thread of its own, tells how far it is, and ends it where a signal says so.
async fn packed(
    client: &Client,
    export: ImageExport,
    rootfs: File,
    target: &Path,
    force: bool,
) -> Result<u64, Failure> {
    let failed = |source: &io::Error| {
        let full = source.kind() == io::ErrorKind::StorageFull;
        Failure::io(
            if full { ErrorKind::Resources } else { ErrorKind::Host },
            format!("failed to write `{}`", target.display()),
            source,
        )
    };
    let directory = target.parent().unwrap_or(Path::new("/"));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".banger-export-").suffix(".partial").permissions(Permissions::from_mode(MODE));
    let fresh = builder.tempfile_in(directory).map_err(|error| failed(&error))?;
    let (name, total) = (export.name.clone(), export.size_bytes);
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut packing = {
        let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
        tokio::task::spawn_blocking(move || -> io::Result<_> {
            let mut told = |bytes| {
                done.store(bytes, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
            };
            pack(&export, &rootfs, BufWriter::new(fresh.as_file()), &mut told)?;
            fresh.as_file().sync_data()?;
            Ok(fresh)
        })
    };
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .map(signal)
        .into_iter()
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| Failure::io(ErrorKind::Host, "signals cannot be received", &error))?;
    let began = Instant::now();
    let mut view = ProgressView::new(client.output);
    let mut ticks = tokio::time::interval(TELL_EVERY);
    let fresh = loop {
        let stopped = futures::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv())));
        tokio::select! {
            packed = &mut packing => break packed,
            _ = stopped => stop.store(true, Ordering::Relaxed),
            _ = ticks.tick() => view.show(&Progress {
                stage: Stage::ImagePull,
                detail: format!("packing {name}"),
                done: Some(done.load(Ordering::Relaxed)),
                total: Some(total),
                elapsed_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
                finished: false,
            }),
        }
    };
    view.close();
    let fresh = match fresh {
        Ok(Ok(fresh)) => fresh,
        // The file went with the thread's end.
        Ok(Err(_)) if stop.load(Ordering::Relaxed) => return Err(Failure::interrupted("the bundle")),
        Ok(Err(error)) => return Err(failed(&error)),
        Err(error) => return Err(Failure::io(ErrorKind::Internal, "the packing ended", &error)),
    };
    let persisted = if force { fresh.persist(target) } else { fresh.persist_noclobber(target) };
    let file = persisted.map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => taken(target),
        _ => failed(&error.error),
    })?;
    file.metadata().map(|metadata| metadata.len()).map_err(|error| failed(&error))
}

fn taken(target: &Path) -> Failure {
    Failure::new(ErrorKind::Conflict, format!("`{}` is there already", target.display()))
        .hint("choose another file, or replace it with `--force`")
}

/// The daemon's directory is another one than ours.
pub(super) fn absolute(path: &Path) -> Result<HostPath, Failure> {
    let wrong = |error: &(dyn std::error::Error + 'static)| {
        Failure::from(WireError::from_error(ErrorKind::Usage, error)).hint("paths must be UTF-8 and not too long")
    };
    let absolute = std::path::absolute(path).map_err(|error| wrong(&error))?;
    let Some(text) = absolute.to_str() else {
        return Err(Failure::usage(format!("`{}` is not UTF-8", path.display())));
    };
    text.parse().map_err(|error| wrong(&error))
}
