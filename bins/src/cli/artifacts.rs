//! `banger image …` and `banger kernel …`: ask, then print.

use super::args::{DeleteImagesArgs, ImageCommand, KernelCommand, PullImageArgs, RegisterImageArgs};
use super::client::{Client, unexpected};
use super::failure::{Failure, Outcome};
use super::output::error_value;
use super::{build, bundle, human, json, table};
use messages::error::ErrorKind;
use messages::ids::{KernelName, Reference};
use messages::image::{CatalogEntry, ImageDetails, ImageView, KernelDetails, KernelImport, KernelView};
use messages::reply::Reply;
use messages::request::{Force, RequestBody};
use serde_json::{Value, json as value_of};

/// Runs one `image` command.
pub(super) async fn image(client: &Client, command: ImageCommand) -> Outcome {
    match command {
        ImageCommand::Catalog => catalog(client, RequestBody::ImageCatalog).await,
        ImageCommand::Pull(args) => {
            let PullImageArgs { reference, name, kernel_ref } = args;
            let body = match kernel_ref {
                Some(kernel) => RequestBody::PullImageFor { reference, name, kernel },
                None => RequestBody::PullImage { reference, name },
            };
            match client.ask(body).await? {
                Reply::Image(view) => pulled(client, view.name.as_str(), &json::image(&view)),
                other => Err(unexpected(&other)),
            }
        }
        ImageCommand::List => match client.ask(RequestBody::ListImages).await? {
            Reply::Images(views) => {
                let headings = ["NAME", "SIZE", "ON DISK", "KERNEL", "SOURCE", "AGE", "USED BY"];
                let empty = "no images: `banger image pull` fetches one, `banger image catalog` lists what there is";
                list(client, &views, json::image, &headings, image_row, empty)
            }
            other => Err(unexpected(&other)),
        },
        ImageCommand::Show { image } => match client.ask(RequestBody::InspectImage { image }).await? {
            Reply::ImageDetails(details) => show(client, &json::image_details(&details), &image_details(&details)),
            other => Err(unexpected(&other)),
        },
        ImageCommand::Register(args) => register(client, args).await,
        ImageCommand::Promote { image } => made(client, RequestBody::PromoteImage { image }).await,
        ImageCommand::Build(args) => build::run(client, args).await,
        ImageCommand::Commit { vm, name } => {
            made(client, RequestBody::CommitImage { vm, name, config: None, source: None }).await
        }
        ImageCommand::Delete(DeleteImagesArgs { images, force }) => {
            if force {
                warn_users(client, &images).await?;
            }
            let force = if force { Force::Yes } else { Force::No };
            let bodies = images.into_iter().map(|image| (image.to_string(), RequestBody::DeleteImage { image, force }));
            delete(client, bodies.collect()).await
        }
        ImageCommand::Prune => match client.ask(RequestBody::PruneImages).await? {
            Reply::Pruned { bytes } => {
                if client.output.json {
                    client.output.value(&value_of!({ "freed_bytes": bytes }))?;
                } else {
                    client.output.remark(&format!("freed {}", human::size(bytes)));
                }
                Ok(0)
            }
            other => Err(unexpected(&other)),
        },
        ImageCommand::Export(args) => bundle::export_image(client, args).await,
        ImageCommand::Import(args) => bundle::import_image(client, args).await,
    }
}

/// Runs one `kernel` command.
pub(super) async fn kernel(client: &Client, command: KernelCommand) -> Outcome {
    match command {
        KernelCommand::Catalog => catalog(client, RequestBody::KernelCatalog).await,
        KernelCommand::Pull { reference } => match client.ask(RequestBody::PullKernel { reference }).await? {
            Reply::Kernel(view) => pulled(client, view.name.as_str(), &json::kernel(&view)),
            other => Err(unexpected(&other)),
        },
        KernelCommand::List => match client.ask(RequestBody::ListKernels).await? {
            Reply::Kernels(views) => {
                let headings = ["NAME", "VERSION", "ON DISK", "SOURCE", "AGE", "USED BY"];
                let empty = "no kernels: `banger kernel pull` fetches one, `banger kernel catalog` lists what there is";
                list(client, &views, json::kernel, &headings, kernel_row, empty)
            }
            other => Err(unexpected(&other)),
        },
        KernelCommand::Show { kernel } => match client.ask(RequestBody::ShowKernel { kernel }).await? {
            Reply::KernelDetails(details) => show(client, &json::kernel_details(&details), &kernel_details(&details)),
            other => Err(unexpected(&other)),
        },
        KernelCommand::Delete { kernels } => {
            let bodies = kernels
                .into_iter()
                .map(|kernel| (kernel.to_string(), RequestBody::DeleteKernel { kernel, force: Force::No }));
            delete(client, bodies.collect()).await
        }
        KernelCommand::Import(args) => bundle::import_kernel(client, args).await,
    }
}

/// Says which VMs lose what they were made from.
async fn warn_users(client: &Client, images: &[Reference]) -> Result<(), Failure> {
    for image in images {
        match client.ask(RequestBody::ShowImage { image: image.clone() }).await {
            Ok(Reply::Image(view)) if !view.used_by.is_empty() => client.output.warn(&format!(
                "{} cannot be started again without image `{image}`; their disks stay",
                view.used_by.join(", ")
            )),
            Ok(Reply::Image(_)) => {}
            Ok(other) => return Err(unexpected(&other)),
            // What cannot be shown, the deletion says more about.
            Err(Failure::Error(_)) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// A request that an image comes of.
async fn made(client: &Client, body: RequestBody) -> Outcome {
    pulled_image(client, client.ask(body).await?)
}

/// Says which image came of a request.
pub(super) fn pulled_image(client: &Client, reply: Reply) -> Outcome {
    match reply {
        Reply::Image(view) => pulled(client, view.name.as_str(), &json::image(&view)),
        other => Err(unexpected(&other)),
    }
}

/// Registers a file; a kernel that is given with it gets the image's name, and goes again if the image does not come.
async fn register(client: &Client, args: RegisterImageArgs) -> Outcome {
    let RegisterImageArgs { name, rootfs, kernel_ref, kernel, modules, initrd, config } = args;
    let rootfs = bundle::absolute(&rootfs)?;
    let Some(vmlinux) = kernel else {
        return made(client, RequestBody::RegisterImage { name, rootfs, kernel: kernel_ref }).await;
    };
    if let (Some(_), Some(initrd)) = (&modules, &initrd) {
        client.output.remark(&format!(
            "`{}` is not needed: the modules are given, and guests boot banger's own initramfs",
            initrd.display()
        ));
    }
    let modules = modules.or(initrd);
    let kernel: KernelName = name.as_str().parse().map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?;
    let import = KernelImport {
        name: kernel.clone(),
        vmlinux: bundle::absolute(&vmlinux)?,
        modules: modules.as_deref().map(bundle::absolute).transpose()?,
        config: config.as_deref().map(bundle::absolute).transpose()?,
        command_line: None,
    };
    client.ask(RequestBody::ImportKernel(import)).await?;
    let registered = made(client, RequestBody::RegisterImage { name, rootfs, kernel: Some(kernel.clone()) }).await;
    if registered.is_err() {
        let kernel = kernel.as_str().parse().map_err(|error| Failure::io_only(ErrorKind::Internal, &error))?;
        client.ask(RequestBody::DeleteKernel { kernel, force: Force::No }).await?;
    }
    registered
}

async fn catalog(client: &Client, body: RequestBody) -> Outcome {
    match client.ask(body).await? {
        Reply::Catalog(entries) => {
            let headings = ["NAME", "KIND", "PRESENT", "DESCRIPTION", "FROM"];
            list(client, &entries, json::catalog_entry, &headings, catalog_row, "the catalog is empty")
        }
        other => Err(unexpected(&other)),
    }
}

/// Deletes each, also when one fails, and fails as the first that failed did.
async fn delete(client: &Client, bodies: Vec<(String, RequestBody)>) -> Outcome {
    let mut first = None;
    let mut values = Vec::new();
    for (asked, body) in bodies {
        match client.ask(body).await {
            Ok(Reply::Done) => {
                client.output.remark(&format!("{asked} deleted"));
                values.push(value_of!({ "asked": asked, "deleted": true }));
            }
            Ok(other) => return Err(unexpected(&other)),
            Err(Failure::Error(error)) => {
                if !client.output.json {
                    client.output.error(&error);
                }
                values.push(value_of!({ "asked": asked, "error": error_value(&error) }));
                first = first.or(Some(error.kind.exit_code()));
            }
            Err(other) => return Err(other),
        }
    }
    if client.output.json {
        client.output.value(&Value::Array(values))?;
    }
    first.map_or(Ok(0), |code| Err(Failure::Said(code)))
}

fn pulled(client: &Client, name: &str, value: &serde_json::Value) -> Outcome {
    if client.output.json {
        client.output.value(value)?
    } else {
        client.output.data(&format!("{name}\n"))?
    }
    Ok(0)
}

fn list<T>(
    client: &Client,
    items: &[T],
    value: fn(&T) -> serde_json::Value,
    headings: &[&str],
    row: fn(&T) -> Vec<String>,
    empty: &str,
) -> Outcome {
    if client.output.json {
        client.output.value(&json::array(items, value))?;
    } else if items.is_empty() {
        client.output.remark(empty);
    } else {
        let rows: Vec<Vec<String>> = items.iter().map(row).collect();
        client.output.data(&table::render(headings, &rows, table::terminal_width()))?;
    }
    Ok(0)
}

fn show(client: &Client, value: &serde_json::Value, details: &[(&str, String)]) -> Outcome {
    if client.output.json {
        client.output.value(value)?
    } else {
        client.output.data(&table::pairs(details))?
    }
    Ok(0)
}

fn used_by(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

fn catalog_row(entry: &CatalogEntry) -> Vec<String> {
    let present = if entry.present { "yes" } else { "no" };
    vec![entry.name.clone(), entry.kind.clone(), present.to_owned(), entry.description.clone(), entry.origin.clone()]
}

fn image_row(view: &ImageView) -> Vec<String> {
    vec![
        view.name.to_string(),
        human::size(view.size_bytes),
        human::size(view.disk_bytes),
        view.kernel.to_string(),
        view.source.clone(),
        human::age(human::since(view.created_at_ms)),
        used_by(&view.used_by),
    ]
}

fn kernel_row(view: &KernelView) -> Vec<String> {
    vec![
        view.name.to_string(),
        view.version.clone(),
        human::size(view.disk_bytes),
        view.source.clone(),
        human::age(human::since(view.created_at_ms)),
        used_by(&view.used_by),
    ]
}

fn image_details(details: &ImageDetails) -> Vec<(&'static str, String)> {
    let view = &details.image;
    let config = &view.config;
    let mut rows = vec![
        ("name", view.name.to_string()),
        ("digest", view.digest.clone()),
        ("size", human::size(view.size_bytes)),
        ("on disk", human::size(view.disk_bytes)),
        ("kernel", view.kernel.to_string()),
        ("source", view.source.clone()),
        ("created", human::timestamp(view.created_at_ms)),
        ("used by", used_by(&view.used_by)),
    ];
    let mut push = |key, value: Option<String>| rows.extend(value.map(|value| (key, value)));
    push("file", details.external.clone());
    push("pulled as", details.pulled_digest.clone());
    push("made from", details.parent.clone());
    push("layers", (!details.layers.is_empty()).then(|| layers(details)));
    push("entrypoint", (!config.entrypoint.is_empty()).then(|| config.entrypoint.join(" ")));
    push("command", (!config.cmd.is_empty()).then(|| config.cmd.join(" ")));
    push("environment", (!config.env.is_empty()).then(|| config.env.join(" ")));
    push("workdir", config.workdir.clone());
    push("user", config.user.clone());
    rows
}

fn layers(details: &ImageDetails) -> String {
    let shared = details.layers.iter().filter(|layer| !layer.shared_with.is_empty()).count();
    let count = details.layers.len();
    let kept = human::size(details.own_bytes + details.shared_bytes);
    let common = if shared == 0 {
        "none of another image's".to_owned()
    } else {
        format!("{shared} ({}) also of another image's", human::size(details.shared_bytes))
    };
    format!("{count}, {common}; {kept} of them kept for the next pull")
}

fn kernel_details(details: &KernelDetails) -> Vec<(&'static str, String)> {
    let view = &details.kernel;
    vec![
        ("name", view.name.to_string()),
        ("version", view.version.clone()),
        ("digest", view.digest.clone()),
        ("on disk", human::size(view.disk_bytes)),
        ("source", view.source.clone()),
        ("created", human::timestamp(view.created_at_ms)),
        ("used by", used_by(&view.used_by)),
        ("command line", details.command_line.clone()),
        (
            "checked by",
            details.checked_by.clone().unwrap_or_else(|| "nothing: it does not carry its configuration".to_owned()),
        ),
    ]
}
