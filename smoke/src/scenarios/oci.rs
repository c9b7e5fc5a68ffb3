//! Container images: from a real registry, which a real tool filled, into guests and against a real unpacker.

mod layers;
mod layout;
mod listing;

use crate::case::{Case, Outcome, SETTLE, Stop, check, failed};
use crate::command::{Program, Running};
pub(crate) use layers::{Layer, archive};
pub(crate) use layout::Layout;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Each scenario has a registry of its own; the run's network is its own too. The config of a run names them.
const BOOT_PORT: u16 = 5000;
const EXACT_PORT: u16 = 5001;
/// That of `make bench`, which is a run of its own.
pub(crate) const BENCH_PORT: u16 = 5000;
/// Images that are compared, and the seed that makes them: always the same ones.
const IMAGES: u64 = 40;
const SEED: u64 = 0x0ba9_6e4d;
/// Every so many, the registry gets zstd instead of gzip, which umoci cannot read.
const ZSTD_EVERY: u64 = 4;
/// The one that also becomes a guest's root.
const COMMITTED: u64 = 1;
const SHOWN: usize = 20;
/// banger's exit code for what is not there (docs/errors.md).
const NOT_FOUND: i32 = 201;

/// A registry on loopback and a directory for what is made for it.
pub(crate) struct Registry {
    server: Running,
    port: u16,
    pub(crate) directory: PathBuf,
}

impl Registry {
    pub(crate) fn start(case: &Case<'_>, port: u16) -> Result<Self, Stop> {
        let registry = registry_program()?;
        for program in [registry.as_str(), "skopeo", "umoci"] {
            if Program::tool(&["sh", "-c", &format!("command -v {program}")]).run()?.code() != 0 {
                return Err(Stop::Skipped(format!("{program} is not installed")));
            }
        }
        let directory = case.world.base.join(format!("oci-{port}"));
        fs::create_dir_all(&directory)?;
        let config = directory.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog: {{disabled: true}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            directory.join("storage").display()
        );
        fs::write(&config, text)?;
        let mut program = Program::tool(&[&registry, "serve", &config.display().to_string()]);
        program.deadline = Duration::from_secs(900);
        let server = program.spawn()?;
        case.wait(SETTLE, "the registry to listen", || {
            Ok(TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string()))
        })?;
        Ok(Self { server, port, directory })
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}:1", self.port)
    }

    /// Publishes an image of a layout.
    pub(crate) fn push(&self, case: &Case<'_>, layout: &Layout, name: &str) -> Outcome {
        let (from, to) = (format!("oci:{}:1", layout.path().display()), format!("docker://{}", self.reference(name)));
        tool(case, &["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &from, &to])
    }

    pub(crate) fn stop(self) -> Outcome {
        self.server.signal(Signal::SIGTERM)?;
        drop(self.server.finish()?);
        Ok(fs::remove_dir_all(&self.directory)?)
    }
}

/// Make has put it beside this program, without installing its service.
fn registry_program() -> std::io::Result<String> {
    let beside = std::env::current_exe()?.with_file_name("docker-registry");
    Ok(if beside.exists() { beside.display().to_string() } else { "docker-registry".to_owned() })
}

fn tool(case: &Case<'_>, argv: &[&str]) -> Outcome {
    let done = case.run(Program::tool(argv))?;
    check(done.code() == 0, || format!("`{}` failed: {}", argv.join(" "), done.err().trim()))
}

/// An image without systemd, one with nothing but a program, ten pulls at once.
pub(super) fn boot(case: &Case<'_>) -> Outcome {
    let registry = Registry::start(case, BOOT_PORT)?;
    let outcome = booted(case, &registry);
    registry.stop().and(outcome)
}

fn booted(case: &Case<'_>, registry: &Registry) -> Outcome {
    let Ok(busybox) = fs::read("/bin/busybox") else {
        return Err(Stop::Skipped("busybox-static is not installed".to_owned()));
    };
    let base = Layer::plain(archive(|layer| {
        layer.directory("./", 0o755);
        layer.directory("bin/", 0o755);
        layer.file("bin/busybox", 0o755, &busybox);
        for name in ["sh", "cat", "id", "pwd", "echo", "sleep", "touch", "mount", "env"] {
            layer.symlink(&format!("bin/{name}"), "busybox");
        }
        layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/srv:/bin/sh\n");
        layer.file("etc/os-release", 0o644, b"ID=before\n");
        layer.file("etc/gone", 0o644, b"gone\n");
    }));
    let top = Layer::gzip(archive(|layer| {
        layer.file("etc/os-release", 0o644, b"ID=tiny\n");
        layer.file("etc/.wh.gone", 0o644, b"");
        layer.directory("srv/", 0o755);
    }));
    let config = json!({
        "Env": ["PATH=/bin", "GREETING=from the image"], "WorkingDir": "/srv", "User": "web",
        "Cmd": ["sh", "-c", "echo $GREETING; pwd; id -un"],
    });
    let layout = Layout::write(&registry.directory.join("tiny"), &[base, top], &config)?;
    registry.push(case, &layout, "tiny")?;
    let scratch = Layer::gzip(archive(|layer| layer.file("busybox", 0o755, &busybox)));
    let config = json!({ "Entrypoint": ["/busybox"], "Cmd": ["echo", "from scratch"] });
    let layout = Layout::write(&registry.directory.join("scratch"), &[scratch], &config)?;
    registry.push(case, &layout, "scratch")?;

    // Ten at once are one pull, and all of them succeed.
    let reference = registry.reference("tiny");
    let pulls: Vec<Running> = (0..10)
        .map(|_| case.start(&["image", "pull", &reference], crate::command::Input::Null))
        .collect::<Result<_, _>>()?;
    for pull in pulls {
        let done = case.finish(pull)?;
        check((done.code(), done.out().trim()) == (0, "tiny-1"), || format!("a pull said `{}`", done.out()))?;
    }
    let vm = case.vm();
    let run = |more: &[&str]| {
        let mut argv = vec!["vm", "run", "--rm", "--name", &vm, "--net", "none", "--image"];
        argv.extend(more);
        Ok::<_, Stop>(case.ok(&argv)?.out())
    };
    let said = run(&[&reference, "--", "sh", "-c", "cat /etc/os-release; cat /etc/gone || echo not there"])?;
    check(said == "ID=tiny\nnot there\n", || format!("the guest said `{said}`"))?;
    let said = run(&["tiny-1"])?;
    check(said == "from the image\n/srv\nweb\n", || format!("the image's own command said `{said}`"))?;
    let said = run(&[&registry.reference("scratch")])?;
    check(said == "from scratch\n", || format!("the program on nothing said `{said}`"))?;
    let said = run(&["scratch-1", "--entrypoint", "/busybox", "--", "echo", "another command"])?;
    check(said == "another command\n", || format!("the program on nothing said `{said}`"))?;

    let gone = case.code(NOT_FOUND, &["image", "pull", &registry.reference("nothing")])?;
    check(gone.err().contains("the registry does not have"), || format!("an image that is not there: {}", gone.err()))?;
    case.ok(&["image", "delete", &reference, "scratch-1"])?;
    case.ok(&["image", "prune"]).map(drop)
}

/// Every file of odd images, compared with what umoci unpacks.
pub(super) fn exact(case: &Case<'_>) -> Outcome {
    let registry = Registry::start(case, EXACT_PORT)?;
    let outcome = compared(case, &registry);
    registry.stop().and(outcome)
}

fn compared(case: &Case<'_>, registry: &Registry) -> Outcome {
    let (mut entries, mut different) = (0, Vec::new());
    for number in 0..IMAGES {
        let name = format!("odd-{number}");
        let layers = layers::odd(SEED + number);
        entries += layers.iter().map(|layer| layer.entries).sum::<usize>();
        let layout = Layout::write(&registry.directory.join(&name), &layers, &json!({}))?;
        if number % ZSTD_EVERY == 0 {
            let layers: Vec<Layer> = layers.iter().map(Layer::zstd).collect();
            let packed = Layout::write(&registry.directory.join(format!("{name}.zstd")), &layers, &json!({}))?;
            registry.push(case, &packed, &name)?;
        } else {
            registry.push(case, &layout, &name)?;
        }
        case.ok(&["image", "pull", &registry.reference(&name)])?;
        let rootfs = case.world.state.join("images").join(format!("{name}-1")).join("rootfs.ext4");
        tool(case, &["e2fsck", "-fn", &rootfs.display().to_string()])?;
        let bundle = registry.directory.join(format!("{name}.bundle"));
        let image = format!("{}:1", layout.path().display());
        tool(case, &["umoci", "unpack", "--image", &image, &bundle.display().to_string()])?;
        let expected = listing::of(&bundle.join("rootfs"))?;
        let ours = mounted(case, &rootfs, &registry.directory.join("mnt"))?;
        different.extend(listing::differences(&expected, &ours).into_iter().map(|line| format!("{name}: {line}")));
        if number == COMMITTED {
            different.extend(committed(case, &format!("{name}-1"), &ours, &registry.directory.join("mnt"))?);
        }
        case.ok(&["image", "delete", &format!("{name}-1")])?;
        fs::remove_dir_all(&bundle)?;
        fs::remove_dir_all(layout.path())?;
    }
    case.ok(&["image", "prune"])?;
    case.note(format!("{IMAGES} images of {entries} entries, {} differences", different.len()));
    if different.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = different.iter().take(SHOWN).map(String::as_str).collect();
    failed(format!("{} differences:\n{}", different.len(), shown.join("\n")))
}

/// The same files, once a guest has had them for its root and an image was made of that.
fn committed(case: &Case<'_>, image: &str, before: &listing::Listing, at: &Path) -> Result<Vec<String>, Stop> {
    let (vm, made) = (case.vm(), format!("{image}-back"));
    case.ok(&["vm", "create", "--name", &vm, "--net", "none", "--image", image, "--wait", "agent"])?;
    case.ok(&["image", "commit", &vm, "--name", &made])?;
    case.ok(&["vm", "delete", "--force", &vm])?;
    let rootfs = case.world.state.join("images").join(&made).join("rootfs.ext4");
    tool(case, &["e2fsck", "-fn", &rootfs.display().to_string()])?;
    let mut after = mounted(case, &rootfs, at)?;
    // The guest has made directories of its own beside them, and so touched the root.
    after.retain(|path, _| !path.is_empty() && before.contains_key(path));
    let before = before.iter().filter(|(path, _)| !path.is_empty()).map(|(path, line)| (path.clone(), line.clone()));
    let different = listing::differences(&before.collect(), &after);
    case.ok(&["image", "delete", &made])?;
    Ok(different.into_iter().map(|line| format!("{made}: {line}")).collect())
}

/// What the kernel itself reads from the file.
fn mounted(case: &Case<'_>, image: &Path, at: &Path) -> Result<listing::Listing, Stop> {
    fs::create_dir_all(at)?;
    let shown = at.display().to_string();
    tool(case, &["mount", "-o", "loop,ro,noload", &image.display().to_string(), &shown])?;
    let listed = listing::of(at);
    tool(case, &["umount", &shown])?;
    Ok(listed?)
}
