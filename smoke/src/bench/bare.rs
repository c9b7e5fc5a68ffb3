//! A guest without banger: the same QEMU, kernel, initramfs and disks, with just enough on this side of the port to answer the
//! agent. The baseline of what banger adds.

use crate::case::{Case, Stop, failed};
use link::frames::{FrameReader, send_hello, write_frame};
use link::mux::{self, Attach, MuxHandle};
use messages::guest::{
    AgentFrame, ArgBytes, BootSpec, CONTROL_PORT, DaemonFrame, Drives, ExecCommand, ExecSpec, ExitStatus, GuestNetwork,
    OPERATION_PORT, OperationFrame, OutputFrame,
};
use messages::ids::{BootNonce, OperationId, VmId};
use messages::image::ImageConfig;
use messages::limits::GUEST_FRAME_MAX;
use messages::vm::Readiness;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;

/// How long a bare guest may take to boot.
const BOOT: Duration = Duration::from_secs(180);

/// QEMU's arguments, taken from a VM that ran, so that both are the same machine.
#[derive(Debug)]
pub(super) struct Template {
    argv: Vec<String>,
    /// The writable disk as it was when the VM was made.
    disk: PathBuf,
    drives: Drives,
    /// Where the command line has an interface.
    pub(super) network: Option<GuestNetwork>,
    directory: PathBuf,
    user: u32,
}

/// A booted guest. It dies with this value.
#[derive(Debug)]
pub(super) struct Bare {
    /// From the start of QEMU until the agent said, over the port, that the overlay is mounted.
    pub(super) took: Duration,
    /// The second port, where one was asked for.
    pub(super) raw: Option<UnixStream>,
    handle: MuxHandle,
    _child: Child,
    // Holds the control stream open.
    _control: Box<dyn std::any::Any + Send + Sync>,
}

/// Whether a bare guest has a port without multiplexer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawPort {
    No,
    Yes,
}

impl Template {
    /// Makes a VM for its command line and its disk, and deletes it.
    pub(super) fn take(case: &Case<'_>) -> Result<Self, Stop> {
        let vm = case.vm_named("template");
        case.ok(&["vm", "create", "--net", "none", "--name", &vm])?;
        let template = Self::of(case, &vm)?;
        case.ok(&["vm", "delete", "--force", &vm])?;
        Ok(template)
    }

    /// The machine of a VM that runs. Its interface is in use for as long as it does.
    pub(super) fn of(case: &Case<'_>, vm: &str) -> Result<Self, Stop> {
        let shown = case.show(vm)?;
        let id = shown["id"].as_str().unwrap_or_default().to_owned();
        let size = shown["size"]["disk_bytes"].as_u64().unwrap_or_default();
        let argv = qemu_of(&id)?;
        let directory = case.world.base.join("bare");
        fs::create_dir_all(&directory)?;
        chown(&directory, Some(case.world.uid), Some(case.world.uid))?;
        let files: Vec<PathBuf> = argv.iter().filter_map(|word| filename_of(word)).collect();
        let own = files.iter().find(|file| file.starts_with(case.world.state.join("vms").join(&id)));
        let Some(own) = own.and_then(|file| file.file_name()) else {
            return failed(format!("no disk of the VM's own in {argv:?}"));
        };
        // The disk before its first boot, which is what each new VM gets a copy of.
        let templates = fs::read_dir(case.world.cache.join("templates"))?.collect::<Result<Vec<_>, _>>()?;
        let fresh = templates.iter().find(|file| file.metadata().is_ok_and(|metadata| metadata.len() == size));
        let Some(fresh) = fresh else { return failed(format!("no template of {size} bytes among {templates:?}")) };
        let disk = directory.join("disk.ext4");
        copy_sparse(&fresh.path(), &disk)?;
        let of = |part: &str| {
            let file = files.iter().find(|file| file.to_string_lossy().contains(part));
            file.map_or_else(|| failed(format!("no `{part}` among {files:?}")), |file| uuid_of(file))
        };
        let drives = Drives { image: of("/images/")?, disk: uuid_of(&disk)?, modules: Some(of("/kernels/")?) };
        Ok(Self { argv: argv.clone(), disk, drives, network: None, directory, user: case.world.uid }
            .without_banger(&argv, own.as_ref()))
    }

    /// Puts plain files and paths in the places of what `banger-emu` hands to QEMU as descriptors.
    fn without_banger(mut self, argv: &[String], disk: &Path) -> Self {
        let mut plain = Vec::new();
        for word in argv {
            if word.starts_with("socket,id=qmp,") || word.starts_with("chardev=qmp,") {
                plain.pop();
            } else if word.starts_with("socket,id=console,") || word.starts_with("file,id=console,") {
                plain.push(format!("file,id=console,path={}", self.directory.join("console.log").display()));
            } else if word.starts_with("socket,id=link,") {
                plain.push(format!("socket,id=link,path={}", self.directory.join("link.sock").display()));
            } else if filename_of(word).is_some_and(|file| file.file_name() == disk.file_name()) {
                let old = filename_of(word).unwrap_or_default().display().to_string();
                plain.push(word.replace(&old, &self.directory.join("now.ext4").display().to_string()));
            } else {
                plain.push(word.clone());
            }
        }
        self.argv = plain;
        self
    }

    /// Boots a fresh guest.
    pub(super) async fn boot(&self, raw: RawPort) -> Result<Bare, Stop> {
        match tokio::time::timeout(BOOT, self.boot_unbounded(raw)).await {
            Ok(result) => result,
            Err(_) => {
                let console = fs::read_to_string(self.directory.join("console.log")).unwrap_or_default();
                failed(format!("the bare guest did not boot in {} s: {console}", BOOT.as_secs()))
            }
        }
    }

    async fn boot_unbounded(&self, raw: RawPort) -> Result<Bare, Stop> {
        let listen = |name: &str| -> Result<UnixListener, Stop> {
            let path = self.directory.join(name);
            drop(fs::remove_file(&path));
            let listener = UnixListener::bind(&path)?;
            chown(&path, Some(self.user), Some(self.user))?;
            Ok(listener)
        };
        let (port, second) = (listen("link.sock")?, listen("raw.sock")?);
        let now = self.directory.join("now.ext4");
        copy_sparse(&self.disk, &now)?;
        chown(&now, Some(self.user), Some(self.user))?;
        let mut command = tokio::process::Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).uid(self.user).gid(self.user).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        if raw == RawPort::Yes {
            let chardev = format!("socket,id=raw,path={}", self.directory.join("raw.sock").display());
            command.args(["-device", "virtio-serial-device,id=serial1,max_ports=2", "-chardev", &chardev]);
            command.args(["-device", "virtserialport,bus=serial1.0,chardev=raw,name=bench.0"]);
        }
        let started = Instant::now();
        let child = command.spawn()?;
        let (io, _) = port.accept().await?;
        let raw = if raw == RawPort::Yes { Some(second.accept().await?.0) } else { None };
        let mut side = mux::host(io, Attach::Fresh);
        tokio::spawn(side.driver.run());
        let Some(incoming) = side.listener.accept().await else { return failed("the bare guest's port ended") };
        if incoming.port != CONTROL_PORT {
            return failed(format!("the agent dialled port {}", incoming.port));
        }
        let (reader, mut writer) = tokio::io::split(incoming.accept().await?);
        let mut reader = FrameReader::new(reader, GUEST_FRAME_MAX);
        send_hello(&mut writer).await?;
        reader.hello().await?;
        reader.set_limit(GUEST_FRAME_MAX);
        loop {
            match reader.message::<AgentFrame>().await? {
                Some(AgentFrame::Identify { .. }) => {
                    let spec = DaemonFrame::Spec(Box::new(self.spec()?));
                    write_frame(&mut writer, &spec, GUEST_FRAME_MAX).await?;
                }
                Some(AgentFrame::Ready { level: Readiness::Agent, .. }) => break,
                Some(AgentFrame::BootFailed(error)) => return failed(format!("the bare guest failed: {error:?}")),
                Some(_) => {}
                None => return failed("the agent's control stream ended"),
            }
        }
        let took = started.elapsed();
        Ok(Bare { took, raw, handle: side.handle, _child: child, _control: Box::new((reader, writer, side.listener)) })
    }

    fn spec(&self) -> Result<BootSpec, Stop> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(BootSpec {
            vm: VmId([0xba; 8]),
            name: "bare".parse()?,
            machine_id: "00112233445566778899aabbccddeeff".to_owned(),
            drives: self.drives.clone(),
            network: self.network.clone(),
            authorized_keys: Vec::new(),
            ssh_host_keys: Vec::new(),
            config: ImageConfig::default(),
            clock_unix_ns: u64::try_from(now.as_nanos())?,
            entropy: [0x5a; 32],
            nonce: BootNonce([0xba; 16]),
        })
    }
}

impl Bare {
    /// Starts a shell script; the reader gives its frames.
    pub(super) async fn exec(&self, script: &str) -> Result<FrameReader<mux::MuxStream>, Stop> {
        let mut stream = self.handle.open(OPERATION_PORT).await?;
        send_hello(&mut stream).await?;
        let argv = ["sh", "-c", script].map(|word| ArgBytes(word.as_bytes().to_vec())).to_vec();
        let exec = ExecSpec::new(ExecCommand::Argv(argv));
        // An agent runs each operation once.
        let mut operation = [0; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut operation)?;
        let open = OperationFrame::Open { operation: OperationId(operation), exec: Box::new(exec) };
        write_frame(&mut stream, &open, GUEST_FRAME_MAX).await?;
        Ok(FrameReader::new(stream, GUEST_FRAME_MAX))
    }
}

/// Reads an operation's frames to its end, which must be a success.
pub(super) async fn succeed(mut reader: FrameReader<mux::MuxStream>) -> Result<(), Stop> {
    let mut said = Vec::new();
    while let Some(payload) = reader.next().await? {
        match messages::frame::decode_borrowed::<OutputFrame<'_>>(payload)? {
            OutputFrame::Exited(ExitStatus::Code(0)) => return Ok(()),
            OutputFrame::Stdout(bytes) | OutputFrame::Stderr(bytes) => said.extend_from_slice(bytes),
            OutputFrame::Exited(status) => {
                return failed(format!("ended with {status:?}: {}", String::from_utf8_lossy(&said)));
            }
            OutputFrame::Failed(error) => return failed(format!("{error:?}")),
            OutputFrame::Started { .. } | OutputFrame::StdinCredit(_) | OutputFrame::StdinClosed => {}
        }
    }
    failed("the operation's stream ended early")
}

/// The command line of the QEMU process that has a file of this VM open.
fn qemu_of(id: &str) -> Result<Vec<String>, Stop> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        if words[0].contains("qemu-system") && words.iter().any(|word| word.contains(id)) {
            return Ok(words.into_iter().filter(|word| !word.is_empty()).collect());
        }
    }
    failed(format!("no QEMU for {id}: this measurement needs the emulated VMM"))
}

/// The file of a `-blockdev`, or none.
fn filename_of(word: &str) -> Option<PathBuf> {
    let node: serde_json::Value = serde_json::from_str(word).ok()?;
    node["file"]["filename"].as_str().map(PathBuf::from)
}

/// `s_uuid` of an ext4 superblock: 0x68 bytes into it, and it begins at 1024 (Documentation/filesystems/ext4/super.rst).
fn uuid_of(file: &Path) -> Result<String, Stop> {
    let mut bytes = [0_u8; 16];
    let mut file = fs::File::open(file)?;
    file.seek(SeekFrom::Start(1024 + 0x68))?;
    file.read_exact(&mut bytes)?;
    let digits = hex::encode(bytes);
    Ok(format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]))
}

fn copy_sparse(from: &Path, to: &Path) -> Result<(), Stop> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    let done = crate::command::Program::tool(&["cp", "--sparse=always", "--reflink=auto", &from, &to]).run()?;
    if done.code() == 0 { Ok(()) } else { failed(format!("cp: {}", done.err())) }
}
