//! One VM's row: everything needed to rebuild its actor. Knows SQL's columns, no SQL statement and no policy.

use crate::ssh::HostKey;
use messages::ids::{BootNonce, ImageName, KernelName, OperationId, RequestId, VmId, VmName};
use messages::privileged::TapNumber;
use messages::vm::{Lifetime, NetAllow, NetworkMode, RestartPolicy, VmSize};
use rusqlite::types::Type;
use rusqlite::{Row, ToSql, named_params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What was intended for a VM when it was last written; what is true now is for reconcile to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made. It has never run: rolled back if the daemon dies now.
    Creating,
    /// Starting or running.
    Running,
    /// On its way down; its VMM may still live.
    Stopping,
    /// Nothing of it is alive.
    Stopped,
    /// Nothing of it is alive; `last_error` says why.
    Failed,
    /// On its way out of the world; never goes back.
    Deleting,
}

impl Phase {
    /// Whether nothing but the disk and logs can exist of it: such a VM needs no actor until somebody asks for it.
    #[must_use]
    pub const fn is_at_rest(self) -> bool {
        match self {
            Self::Stopped | Self::Failed => true,
            Self::Creating | Self::Running | Self::Stopping | Self::Deleting => false,
        }
    }
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRecord {
    pub id: VmId,
    pub name: VmName,
    /// The request that made it.
    pub request: Option<RequestId>,
    pub phase: Phase,
    pub image: ImageName,
    pub kernel: KernelName,
    pub size: VmSize,
    pub network: NetworkMode,
    /// The tap it has, or had last: asked for again, so that its address stays.
    pub tap: Option<TapNumber>,
    pub labels: Vec<(String, String)>,
    pub restart: RestartPolicy,
    pub lifetime: Lifetime,
    /// Of the present boot.
    pub nonce: Option<BootNonce>,
    /// The operation that an ephemeral VM lives for.
    pub operation: Option<OperationId>,
    /// Whether the guest was ever ready.
    pub was_ready: bool,
    pub created_at_ms: u64,
    pub started_at_ms: Option<u64>,
    pub last_error: Option<String>,
    /// What its SSH server proves itself with. Made with the first boot.
    pub ssh_host_key: Option<HostKey>,
    /// VMs by their ids: names change, and come back for others.
    pub net_allow: Vec<NetAllow>,
}

/// The columns in the order of [`VmRecord::from_row`].
pub(super) const COLUMNS: &str = "id, name, request, phase, image, kernel, size, network, tap, labels, restart, lifetime, \
    nonce, operation, was_ready, created_at_ms, started_at_ms, last_error, ssh_host_key, net_allow";
/// Their parameters, as [`VmRecord::bind`] names them.
pub(super) const PARAMETERS: &str = ":id, :name, :request, :phase, :image, :kernel, :size, :network, :tap, :labels, :restart, \
    :lifetime, :nonce, :operation, :was_ready, :created_at_ms, :started_at_ms, :last_error, :ssh_host_key, :net_allow";

/// Words and lists are kept as JSON text, so that `sqlite3` shows them to people.
fn text<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn column<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let json: String = row.get(index)?;
    serde_json::from_str(&json).map_err(|error| bad(index, Type::Text, error))
}

fn bad(index: usize, of: Type, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, of, Box::new(error))
}

fn name<T: std::str::FromStr<Err = messages::ids::InvalidId>>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    row.get::<_, String>(index)?.parse().map_err(|error| bad(index, Type::Text, error))
}

fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(index)?).map_err(|error| bad(index, Type::Integer, error))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl VmRecord {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: VmId(row.get(0)?),
            name: name(row, 1)?,
            request: row.get::<_, Option<_>>(2)?.map(RequestId),
            phase: column(row, 3)?,
            image: name(row, 4)?,
            kernel: name(row, 5)?,
            size: column(row, 6)?,
            network: column(row, 7)?,
            tap: row.get::<_, Option<u16>>(8)?.map(TapNumber),
            labels: column(row, 9)?,
            restart: column(row, 10)?,
            lifetime: column(row, 11)?,
            nonce: row.get::<_, Option<_>>(12)?.map(BootNonce),
            operation: row.get::<_, Option<_>>(13)?.map(OperationId),
            was_ready: row.get(14)?,
            created_at_ms: unsigned(row, 15)?,
            started_at_ms: row.get::<_, Option<i64>>(16)?.map(|_| unsigned(row, 16)).transpose()?,
            last_error: row.get(17)?,
            ssh_host_key: row.get::<_, Option<_>>(18)?.map(HostKey::from_bytes),
            net_allow: column(row, 19)?,
        })
    }

    /// Runs a statement that takes every column.
    pub(super) fn bind(&self, statement: &mut rusqlite::Statement<'_>) -> rusqlite::Result<usize> {
        let (phase, size, network) = (text(&self.phase)?, text(&self.size)?, text(&self.network)?);
        let (labels, restart, lifetime) = (text(&self.labels)?, text(&self.restart)?, text(&self.lifetime)?);
        let started: Option<i64> = self.started_at_ms.map(signed);
        let optional = |bytes: Option<&[u8]>| -> Option<Vec<u8>> { bytes.map(<[u8]>::to_vec) };
        statement.execute(named_params! {
            ":id": self.id.0.as_slice(),
            ":name": self.name.as_str(),
            ":request": optional(self.request.as_ref().map(|id| id.0.as_slice())),
            ":phase": phase,
            ":image": self.image.as_str(),
            ":kernel": self.kernel.as_str(),
            ":size": size,
            ":network": network,
            ":tap": self.tap.map(|tap| tap.0),
            ":labels": labels,
            ":restart": restart,
            ":lifetime": lifetime,
            ":nonce": optional(self.nonce.as_ref().map(|id| id.0.as_slice())),
            ":operation": optional(self.operation.as_ref().map(|id| id.0.as_slice())),
            ":was_ready": &self.was_ready as &dyn ToSql,
            ":created_at_ms": signed(self.created_at_ms),
            ":started_at_ms": started,
            ":last_error": self.last_error.as_deref(),
            ":ssh_host_key": optional(self.ssh_host_key.as_ref().map(|key| key.as_bytes().as_slice())),
            ":net_allow": text(&self.net_allow)?,
        })
    }
}
