//! The statements, run by the writer thread. One connection, one transaction for each call.

use super::record::{COLUMNS, PARAMETERS, VmRecord};
use super::{Created, StoreError, Tombstone};
use messages::ids::{RequestId, VmId};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use std::path::Path;

/// Numbered from 1; a landed one is never edited: a test holds their digests.
pub(super) const MIGRATIONS: [&str; 4] = [
    include_str!("migrations/0001_vms.sql"),
    include_str!("migrations/0002_ssh_host_keys.sql"),
    include_str!("migrations/0003_net_allow.sql"),
    include_str!("migrations/0004_old_tombstones.sql"),
];

/// What a write must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: an intent, before the act. One fsync.
    Intent,
    /// The daemon's death: a fact that reconcile would find out again.
    Fact,
}

/// How long it is known that a VM was deleted, and by which request it had been made. Nobody repeats a request after a week; a program
/// may make millions of VMs in a month.
const TOMBSTONE_KEEP_MS: u64 = 7 * 24 * 3600 * 1000;

#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    durability: Durability,
}

fn query(action: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Query { action, source }
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_path_buf(), source };
        let mut connection = Connection::open(path).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", "ON").map_err(failed)?;
        // 1 MiB: the whole working set of a thousand VMs, and a bound on the daemon's memory.
        connection.pragma_update(None, "cache_size", -1024).map_err(failed)?;
        let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
        if found > known {
            return Err(StoreError::Newer { path: path.to_path_buf(), found, known });
        }
        for (number, sql) in (1..).zip(MIGRATIONS).filter(|(number, _)| *number > found) {
            migrate(&mut connection, number, sql).map_err(|source| StoreError::Migrate { number, source })?;
        }
        Ok(Self { connection, durability: Durability::Intent })
    }

    fn set_durability(&mut self, durability: Durability) -> Result<(), StoreError> {
        if self.durability != durability {
            let level = match durability {
                Durability::Intent => "FULL",
                Durability::Fact => "NORMAL",
            };
            self.connection.pragma_update(None, "synchronous", level).map_err(query("set the durability"))?;
            self.durability = durability;
        }
        Ok(())
    }

    pub(super) fn create(&mut self, record: &VmRecord) -> Result<Created, StoreError> {
        self.set_durability(Durability::Intent)?;
        let failed = query("create a VM");
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        if let Some(request) = record.request
            && let Some(before) = made_by(&transaction, request).map_err(&failed)?
        {
            return Ok(before);
        }
        let buried: bool = transaction
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM tombstones WHERE id = ?1)")
            .and_then(|mut statement| statement.query_row([record.id.0], |row| row.get(0)))
            .map_err(&failed)?;
        if buried {
            // 64 random bits came up twice: the caller draws again.
            return Ok(Created::Deleted(record.id));
        }
        transaction
            .prepare_cached(&format!("INSERT INTO vms ({COLUMNS}) VALUES ({PARAMETERS})"))
            .and_then(|mut statement| record.bind(&mut statement))
            .map_err(|error| name_taken(error, record, "create a VM"))?;
        transaction.commit().map_err(failed)?;
        Ok(Created::New)
    }

    pub(super) fn put(&mut self, record: &VmRecord, durability: Durability) -> Result<(), StoreError> {
        self.set_durability(durability)?;
        self.connection
            .prepare_cached(&format!("UPDATE vms SET ({COLUMNS}) = ({PARAMETERS}) WHERE id = :id"))
            .and_then(|mut statement| record.bind(&mut statement))
            .map_err(|error| name_taken(error, record, "write a VM"))
            .and_then(|changed| if changed == 0 { Err(StoreError::NotThere(record.id)) } else { Ok(()) })
    }

    pub(super) fn bury(&mut self, vm: VmId, now_ms: u64) -> Result<(), StoreError> {
        // A lost tombstone means a row in phase `deleting`, which reconcile buries again.
        self.set_durability(Durability::Fact)?;
        let failed = query("delete a VM");
        let transaction = self.connection.transaction().map_err(&failed)?;
        transaction
            .execute(
                "INSERT OR IGNORE INTO tombstones (id, name, request, deleted_at_ms) \
                 SELECT id, name, request, ?2 FROM vms WHERE id = ?1",
                params![vm.0, i64::try_from(now_ms).unwrap_or(i64::MAX)],
            )
            .and_then(|_| transaction.execute("DELETE FROM vms WHERE id = ?1", [vm.0]))
            .and_then(|_| {
                let oldest = i64::try_from(now_ms.saturating_sub(TOMBSTONE_KEEP_MS)).unwrap_or(i64::MAX);
                transaction.execute("DELETE FROM tombstones WHERE deleted_at_ms < ?1", [oldest])
            })
            .map_err(&failed)?;
        transaction.commit().map_err(failed)
    }

    pub(super) fn all(&self) -> Result<Vec<VmRecord>, StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM vms ORDER BY created_at_ms, id"))
            .and_then(|mut statement| statement.query_map([], VmRecord::from_row)?.collect())
            .map_err(query("read the VMs"))
    }

    pub(super) fn get(&self, vm: VmId) -> Result<Option<VmRecord>, StoreError> {
        self.connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM vms WHERE id = ?1"))
            .and_then(|mut statement| statement.query_row([vm.0], VmRecord::from_row).optional())
            .map_err(query("read a VM"))
    }

    pub(super) fn made_by(&self, request: RequestId) -> Result<Option<Created>, StoreError> {
        made_by(&self.connection, request).map_err(query("look up a request"))
    }

    pub(super) fn tombstone(&self, reference: &str) -> Result<Option<Tombstone>, StoreError> {
        let id = reference.parse::<VmId>().map(|id| id.0.to_vec()).unwrap_or_default();
        let found: Option<([u8; 8], String)> = self
            .connection
            .query_row(
                "SELECT id, name FROM tombstones WHERE id = ?1 OR name = ?2 ORDER BY deleted_at_ms DESC LIMIT 1",
                params![id, reference],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(query("look up a deleted VM"))?;
        Ok(found.and_then(|(id, name)| Some(Tombstone { id: VmId(id), name: name.parse().ok()? })))
    }
}

fn made_by(connection: &Connection, request: RequestId) -> rusqlite::Result<Option<Created>> {
    let find = |table: &str| -> rusqlite::Result<Option<VmId>> {
        connection
            .prepare_cached(&format!("SELECT id FROM {table} WHERE request = ?1"))?
            .query_row([request.0], |row| Ok(VmId(row.get(0)?)))
            .optional()
    };
    Ok(match find("vms")? {
        Some(vm) => Some(Created::Already(vm)),
        None => find("tombstones")?.map(Created::Deleted),
    })
}

fn name_taken(error: rusqlite::Error, record: &VmRecord, action: &'static str) -> StoreError {
    match &error {
        rusqlite::Error::SqliteFailure(failure, Some(text))
            if failure.code == rusqlite::ErrorCode::ConstraintViolation && text.contains("vms.name") =>
        {
            StoreError::NameTaken(record.name.clone())
        }
        _ => query(action)(error),
    }
}

fn migrate(connection: &mut Connection, number: u32, sql: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(sql)?;
    transaction.pragma_update(None, "user_version", number)?;
    transaction.commit()
}
