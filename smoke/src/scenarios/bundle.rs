//! Images and kernels that are carried: out of this host in a bundle and in again, and a kernel made of files.

use super::oci::{Layer, Layout, Registry, archive};
use crate::artifacts::KERNEL;
use crate::case::{Case, Outcome, Stop, check};
use crate::command::Program;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The config of a run names it.
const PORT: u16 = 5002;
/// banger's exit codes (docs/errors.md).
const USAGE: i32 = 2;
const CONFLICT: i32 = 202;
const DOWNLOAD: i32 = 213;
/// What the image is called here, where the registry's reference decides.
const IMAGE: &str = "carried-1";

pub(super) fn bundle(case: &Case<'_>) -> Outcome {
    let registry = Registry::start(case, PORT)?;
    let outcome = carried(case, &registry);
    registry.stop().and(outcome)
}

fn carried(case: &Case<'_>, registry: &Registry) -> Outcome {
    let Ok(busybox) = fs::read("/bin/busybox") else {
        return Err(Stop::Skipped("busybox-static is not installed".to_owned()));
    };
    let layer = Layer::gzip(archive(|layer| {
        layer.directory("bin/", 0o755);
        layer.file("bin/busybox", 0o755, &busybox);
        for name in ["sh", "cat", "uname"] {
            layer.symlink(&format!("bin/{name}"), "busybox");
        }
        layer.file("etc/word", 0o644, b"carried\n");
    }));
    let layout = Layout::write(&registry.directory.join("carried"), &[layer], &json!({ "Env": ["PATH=/bin"] }))?;
    registry.push(case, &layout, "carried")?;
    case.ok(&["image", "pull", &registry.reference("carried")])?;
    let rootfs = case.world.state.join("images").join(IMAGE).join("rootfs.ext4");
    let original = fs::read(&rootfs)?;

    // Relative to the directory of the user, which is not the daemon's.
    let home = case.world.base.join("h");
    case.ok(&["image", "export", IMAGE, "carried.bundle"])?;
    case.ok(&["image", "export", IMAGE, "again.bundle"])?;
    let bundle = fs::read(home.join("carried.bundle"))?;
    check(bundle == fs::read(home.join("again.bundle"))?, || "two exports of one image differ".to_owned())?;
    case.note(format!("{} bytes of file system, {} of bundle", original.len(), bundle.len()));
    case.code(CONFLICT, &["image", "export", IMAGE, "carried.bundle"])?;
    case.ok(&["image", "export", "--force", IMAGE, "again.bundle"])?;
    fs::write(home.join("again.bundle"), &bundle[..bundle.len() - 100])?;
    let partial = fs::read_dir(&home)?.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".partial"));
    check(!partial, || "an export left its partial file".to_owned())?;

    case.ok(&["image", "delete", IMAGE])?;
    let damaged = case.code(DOWNLOAD, &["image", "import", "again.bundle"])?;
    check(damaged.err().contains("is damaged or cut off"), || format!("a damaged bundle: {}", damaged.err()))?;
    check(!rootfs.exists(), || "a damaged bundle made an image".to_owned())?;
    let said = case.ok(&["image", "import", "carried.bundle"])?.out();
    check(said.trim() == IMAGE, || format!("the import said `{said}`"))?;
    check(fs::read(&rootfs)? == original, || "the file system came back as another one".to_owned())?;
    case.code(CONFLICT, &["image", "import", "carried.bundle"])?;

    imported(case, &home)?;
    let vm = case.vm();
    let run = ["vm", "run", "--rm", "--name", &vm, "--net", "none", "--image", IMAGE, "--kernel", "bundle-kernel"];
    let said = case.ok(&[&run[..], &["--", "sh", "-c", "cat /etc/word; uname -r"]].concat())?.out();
    let version = kernel(case, KERNEL)?["version"].as_str().unwrap_or_default().to_owned();
    check(said == format!("carried\n{version}\n"), || format!("the guest said `{said}`"))?;

    case.ok(&["image", "delete", IMAGE])?;
    case.ok(&["kernel", "delete", "bundle-kernel"])?;
    for file in ["carried.bundle", "again.bundle", "lacking"] {
        fs::remove_file(home.join(file))?;
    }
    case.ok(&["image", "prune"]).map(drop)
}

/// Makes `bundle-kernel` of the files that the pulled one is of.
fn imported(case: &Case<'_>, home: &Path) -> Outcome {
    let from = case.world.state.join("kernels").join(KERNEL);
    let modules = case.world.base.join("bundle-modules");
    fs::create_dir_all(&modules)?;
    let dump = format!("rdump / {}", modules.display());
    let drive = from.join("modules.ext4").display().to_string();
    let done = case.run(Program::tool(&["debugfs", "-R", &dump, &drive]))?;
    check(done.code() == 0 && modules.join("modules.builtin").exists(), || format!("debugfs: {}", done.err()))?;

    // Of the file system that they were on, and root's alone.
    fs::remove_dir(modules.join("lost+found"))?;

    let (vmlinux, modules) = (from.join("vmlinux").display().to_string(), modules.display().to_string());
    let import = ["kernel", "import", "--name", "bundle-kernel", "--vmlinux", &vmlinux, "--modules", &modules];
    fs::write(home.join("lacking"), "CONFIG_64BIT=y\nCONFIG_VIRTIO_MMIO=m\n")?;
    let refused = case.code(USAGE, &[&import[..], &["--config", "lacking"]].concat())?;
    let said = refused.err();
    check(said.contains("CONFIG_DEVTMPFS (built in)") && !said.contains("VIRTIO_MMIO"), || format!("it said: {said}"))?;
    case.ok(&import)?;
    let (ours, theirs) = (kernel(case, "bundle-kernel")?, kernel(case, KERNEL)?);
    for same in ["version", "digest", "command_line"] {
        check(ours[same] == theirs[same], || format!("{same} is {}, and was {}", ours[same], theirs[same]))?;
    }
    check(ours["checked_by"].is_string(), || "its options were not checked".to_owned())?;
    case.code(CONFLICT, &import)?;
    Ok(fs::remove_dir_all(&modules)?)
}

fn kernel(case: &Case<'_>, name: &str) -> Result<Value, Stop> {
    Ok(serde_json::from_slice(&case.ok(&["kernel", "show", name, "--json"])?.stdout)?)
}
