//! From method, path and body to one typed request. Pure: this is the whole routing table.

use super::bodies::{
    Action, ActionType, BootSource, Drive, Entropy, Logger, MachineConfig, MachineConfigUpdate, MemoryBackendType,
    Metrics, NetworkInterface, PartialDrive, PartialNetworkInterface, Serial, SnapshotCreate, SnapshotLoad,
    SnapshotType, Vm, VmState, Vsock,
};
use crate::emu::fault::Fault;
use crate::emu::phase::Operation;
use axum::http::Method;
use serde::de::{DeserializeOwned, Error as _};
use std::path::PathBuf;

/// One request, checked as far as that needs no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Info,
    Version,
    GetMachineConfig,
    VmConfig,
    MachineConfig(MachineConfigUpdate),
    BootSource(BootSource),
    Drive(Drive),
    PatchDrive(PartialDrive),
    Network(NetworkInterface),
    PatchNetwork(PartialNetworkInterface),
    Vsock(Vsock),
    Entropy(Entropy),
    Serial(Serial),
    Logger(Logger),
    Metrics(Metrics),
    InstanceStart,
    CtrlAltDel,
    FlushMetrics,
    Pause,
    Resume,
    SnapshotCreate(SnapshotCreate),
    /// The path of the memory file, whichever of the two fields named it.
    SnapshotLoad(Box<SnapshotLoad>, PathBuf),
}

impl Request {
    /// What the phase machine and a script call it.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        match self {
            Self::Info => Operation::Info,
            Self::Version => Operation::Version,
            Self::GetMachineConfig => Operation::GetMachineConfig,
            Self::VmConfig => Operation::VmConfig,
            Self::MachineConfig(_) => Operation::MachineConfig,
            Self::BootSource(_) => Operation::BootSource,
            Self::Drive(_) => Operation::Drives,
            Self::PatchDrive(_) => Operation::PatchDrives,
            Self::Network(_) => Operation::Network,
            Self::PatchNetwork(_) => Operation::PatchNetwork,
            Self::Vsock(_) => Operation::Vsock,
            Self::Entropy(_) => Operation::Entropy,
            Self::Serial(_) => Operation::Serial,
            Self::Logger(_) => Operation::Logger,
            Self::Metrics(_) => Operation::Metrics,
            Self::InstanceStart => Operation::InstanceStart,
            Self::CtrlAltDel => Operation::CtrlAltDel,
            Self::FlushMetrics => Operation::FlushMetrics,
            Self::Pause => Operation::Pause,
            Self::Resume => Operation::Resume,
            Self::SnapshotCreate(_) => Operation::SnapshotCreate,
            Self::SnapshotLoad(load, _) => Operation::SnapshotLoad { resume: load.resume_vm },
        }
    }

    /// Reads one request.
    ///
    /// # Errors
    /// Everything that can be wrong with it without knowing the machine.
    pub fn parse(method: &Method, path: &str, body: &[u8]) -> Result<Self, Fault> {
        let mut segments = path.trim_start_matches('/').split('/');
        let first = segments.next().unwrap_or("");
        let second = segments.next();
        if segments.next().is_some_and(|rest| !rest.is_empty()) && first != "balloon" {
            return Err(no_such(method, path));
        }
        match *method {
            Method::GET if !body.is_empty() => Err(Fault::BodyOnGet),
            Method::GET => Self::parse_get(first, second).ok_or_else(|| no_such(method, path))?,
            Method::PUT | Method::PATCH if body.is_empty() && !(first == "balloon" && *method == Method::PATCH) => {
                Err(Fault::EmptyBody(method.to_string()))
            }
            Method::PUT => Self::parse_put(first, second, body).ok_or_else(|| no_such(method, path))?,
            Method::PATCH => Self::parse_patch(first, second, body).ok_or_else(|| no_such(method, path))?,
            _ => Err(no_such(method, path)),
        }
    }

    fn parse_get(first: &str, second: Option<&str>) -> Option<Result<Self, Fault>> {
        Some(match (first, second) {
            ("", None) => Ok(Self::Info),
            ("version", None) => Ok(Self::Version),
            ("machine-config", None) => Ok(Self::GetMachineConfig),
            ("vm", Some("config")) => Ok(Self::VmConfig),
            _ => return refused(first, second),
        })
    }

    fn parse_put(first: &str, second: Option<&str>, body: &[u8]) -> Option<Result<Self, Fault>> {
        Some(match (first, second) {
            ("actions", None) => json::<Action>(body).map(|action| match action.action_type {
                ActionType::FlushMetrics => Self::FlushMetrics,
                ActionType::InstanceStart => Self::InstanceStart,
                ActionType::SendCtrlAltDel => Self::CtrlAltDel,
            }),
            ("boot-source", None) => json(body).map(Self::BootSource),
            ("drives", id) => parse_drive(id, body),
            ("entropy", None) => json(body).map(Self::Entropy),
            ("logger", None) => json(body).map(Self::Logger),
            ("machine-config", None) => json::<MachineConfig>(body).map(|config| Self::MachineConfig(config.into())),
            ("metrics", None) => json(body).map(Self::Metrics),
            ("network-interfaces", id) => parse_interface(id, body),
            ("serial", None) => json(body).map(Self::Serial),
            ("snapshot", Some("create")) => parse_snapshot_create(body),
            ("snapshot", Some("load")) => parse_snapshot_load(body),
            ("vsock", None) => json(body).map(Self::Vsock),
            _ => return refused(first, second),
        })
    }

    fn parse_patch(first: &str, second: Option<&str>, body: &[u8]) -> Option<Result<Self, Fault>> {
        Some(match (first, second) {
            ("drives", id) => parse_drive_patch(id, body),
            ("machine-config", None) => json(body).and_then(|update: MachineConfigUpdate| {
                if update == MachineConfigUpdate::default() {
                    return Err(Fault::EmptyBody("PATCH".to_owned()));
                }
                Ok(Self::MachineConfig(update))
            }),
            ("network-interfaces", id) => parse_interface_patch(id, body),
            ("vm", None) => json::<Vm>(body).map(|vm| match vm.state {
                VmState::Paused => Self::Pause,
                VmState::Resumed => Self::Resume,
            }),
            _ => return refused(first, second),
        })
    }
}

fn no_such(method: &Method, path: &str) -> Fault {
    Fault::InvalidPathMethod { method: method.to_string(), path: path.to_owned() }
}

/// The routes that Firecracker has and this does not, each with its name in the refusal.
fn refused(first: &str, second: Option<&str>) -> Option<Result<Request, Fault>> {
    let what = match (first, second) {
        ("balloon", _) => "the balloon device",
        ("cpu-config", None) => "a custom CPU template",
        ("hotplug", Some("memory")) => "memory hotplug",
        ("mmds", None | Some("config")) => "MMDS",
        ("pmem", _) => "a pmem device",
        _ => return None,
    };
    Some(Err(Fault::NotSupported(what)))
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    Ok(serde_json::from_slice(body)?)
}

fn checked_id(id: Option<&str>) -> Result<&str, Fault> {
    match id {
        None | Some("") => Err(Fault::EmptyId),
        Some(id) if !id.chars().all(|c| c == '_' || c.is_alphanumeric()) => Err(Fault::InvalidId),
        Some(id) => Ok(id),
    }
}

fn parse_drive(id: Option<&str>, body: &[u8]) -> Result<Request, Fault> {
    let id = checked_id(id)?;
    let drive: Drive = json(body)?;
    if drive.drive_id != id {
        return Err(Fault::IdMismatch);
    }
    Ok(Request::Drive(drive))
}

fn parse_drive_patch(id: Option<&str>, body: &[u8]) -> Result<Request, Fault> {
    let id = checked_id(id)?;
    let drive: PartialDrive = json(body)?;
    if drive.drive_id != id {
        return Err(Fault::IdMismatch);
    }
    Ok(Request::PatchDrive(drive))
}

fn parse_interface(id: Option<&str>, body: &[u8]) -> Result<Request, Fault> {
    let id = checked_id(id)?;
    let interface: NetworkInterface = json(body)?;
    same_interface(id, &interface.iface_id)?;
    Ok(Request::Network(interface))
}

fn parse_interface_patch(id: Option<&str>, body: &[u8]) -> Result<Request, Fault> {
    let id = checked_id(id)?;
    let interface: PartialNetworkInterface = json(body)?;
    same_interface(id, &interface.iface_id)?;
    Ok(Request::PatchNetwork(interface))
}

fn same_interface(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        return Ok(());
    }
    Err(Fault::InterfaceIdMismatch { path: path.to_owned(), body: body.to_owned() })
}

fn parse_snapshot_create(body: &[u8]) -> Result<Request, Fault> {
    let create: SnapshotCreate = json(body)?;
    if create.snapshot_type == SnapshotType::Diff {
        return Err(Fault::NotSupported("a diff snapshot"));
    }
    Ok(Request::SnapshotCreate(create))
}

fn parse_snapshot_load(body: &[u8]) -> Result<Request, Fault> {
    let load: SnapshotLoad = json(body)?;
    let memory = match (&load.mem_backend, &load.mem_file_path) {
        (Some(_), Some(_)) => {
            return Err(serde_json::Error::custom(
                "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
            )
            .into());
        }
        (None, None) => {
            return Err(serde_json::Error::custom(
                "missing field: either `mem_backend` or `mem_file_path` is required",
            )
            .into());
        }
        (Some(backend), None) if backend.backend_type == MemoryBackendType::Uffd => {
            return Err(Fault::NotSupported("a memory backend of type Uffd"));
        }
        (Some(backend), None) => backend.backend_path.clone(),
        (None, Some(path)) => path.clone(),
    };
    Ok(Request::SnapshotLoad(Box::new(load), memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(method: Method, path: &str, body: &str) -> String {
        Request::parse(&method, path, body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn requests_are_told_apart() {
        let put = |path, body: &str| Request::parse(&Method::PUT, path, body.as_bytes()).unwrap().operation();
        assert_eq!(Request::parse(&Method::GET, "/", b"").unwrap(), Request::Info);
        assert_eq!(Request::parse(&Method::GET, "/vm/config", b"").unwrap(), Request::VmConfig);
        assert_eq!(put("/actions", r#"{"action_type":"InstanceStart"}"#), Operation::InstanceStart);
        assert_eq!(put("/boot-source", r#"{"kernel_image_path":"k"}"#), Operation::BootSource);
        assert_eq!(put("/drives/a", r#"{"drive_id":"a","is_root_device":false}"#), Operation::Drives);
        let load = put("/snapshot/load", r#"{"snapshot_path":"s","mem_file_path":"m","resume_vm":true}"#);
        assert_eq!(load, Operation::SnapshotLoad { resume: true });
    }

    #[test]
    fn refusals_are_firecrackers() {
        assert_eq!(fault(Method::GET, "/nothing", ""), "Invalid request method and/or path: GET /nothing.");
        assert_eq!(fault(Method::DELETE, "/drives/a", ""), "Invalid request method and/or path: DELETE /drives/a.");
        assert_eq!(fault(Method::PUT, "/vsock", ""), "Empty PUT request.");
        assert_eq!(fault(Method::PATCH, "/machine-config", "{}"), "Empty PATCH request.");
        assert_eq!(fault(Method::GET, "/version", "{}"), "GET request cannot have a body.");
        assert_eq!(fault(Method::PUT, "/drives", "{}"), "The ID cannot be empty.");
        assert_eq!(
            fault(Method::PUT, "/drives/a-b", "{}"),
            "API Resource IDs can only contain alphanumeric characters and underscores."
        );
        assert_eq!(
            fault(Method::PUT, "/drives/a", r#"{"drive_id":"b","is_root_device":false}"#),
            "The id from the path does not match the id from the body!"
        );
        assert_eq!(
            fault(Method::PUT, "/network-interfaces/eth0", r#"{"iface_id":"eth1","host_dev_name":"t"}"#),
            "The id from the path [eth0] does not match the id from the body [eth1]!"
        );
        let unknown = fault(Method::PUT, "/entropy", r#"{"speed":1}"#);
        assert!(
            unknown
                .starts_with("An error occurred when deserializing the json body of a request: unknown field `speed`")
        );
        assert!(fault(Method::PUT, "/snapshot/load", r#"{"snapshot_path":"s"}"#).contains("missing field: either"));
        assert_eq!(
            fault(Method::PUT, "/mmds", "{}"),
            "The requested operation is not supported: MMDS is not supported by banger-emu"
        );
    }
}
