//! The SQLite file: one writer thread, numbered migrations, and a handle for everybody else.
//!
//! Intents are committed with `synchronous = FULL` before the act; facts that reconcile can find out again with `NORMAL`,
//! which survives a kill -9 of the daemon but costs no fsync. The store keeps rows; it decides nothing.

mod database;
mod record;

pub use database::Durability;
pub use record::{Phase, VmRecord};

use database::Database;
use messages::error::{ErrorKind, WireError};
use messages::ids::{RequestId, VmId, VmName};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// How many writes may wait. Each is small and takes one fsync at most; beyond this, callers wait.
const QUEUE: usize = 256;

/// Says what the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to open the database `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the database `{}` has schema {found}; this banger knows up to {known}", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("migration {number} of the database failed")]
    Migrate {
        number: u32,
        #[source]
        source: rusqlite::Error,
    },
    #[error("failed to {action} in the database")]
    Query {
        action: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the name `{0}` is taken")]
    NameTaken(VmName),
    #[error("there is no VM {0}")]
    NotThere(VmId),
    #[error("the store panicked: {0}")]
    Panicked(String),
    #[error("the store is closed")]
    Closed,
}

impl From<StoreError> for WireError {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::NameTaken(_) => ErrorKind::Conflict,
            StoreError::NotThere(_) => ErrorKind::NotFound,
            StoreError::Newer { .. } | StoreError::Open { .. } | StoreError::Query { .. } => ErrorKind::Host,
            StoreError::Migrate { .. } | StoreError::Panicked(_) => ErrorKind::Internal,
            StoreError::Closed => ErrorKind::Unavailable,
        };
        Self::from_error(kind, &error)
    }
}

/// What became of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    New,
    /// The same request made this VM before.
    Already(VmId),
    /// The same request made this VM before, and it has been deleted since.
    Deleted(VmId),
}

/// A VM that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub id: VmId,
    pub name: VmName,
}

type Job = Box<dyn FnOnce(&mut Database) + Send>;

/// A handle to the writer thread. The file is closed when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens or makes the database, migrates it and starts its thread.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Newer`], [`StoreError::Migrate`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut database = Database::open(path)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let path = path.to_path_buf();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    // The job's own panic is answered inside; a connection it left in the middle of something is not used again.
                    if catch_unwind(AssertUnwindSafe(|| job(&mut database))).is_err() {
                        match Database::open(&path) {
                            Ok(fresh) => database = fresh,
                            Err(error) => {
                                tracing::error!(error = %error, "the store cannot be opened again after a panic");
                                return;
                            }
                        }
                    }
                }
            })
            .map_err(|_| StoreError::Closed)?;
        Ok(Self { jobs })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |database| {
            let result = catch_unwind(AssertUnwindSafe(|| job(database)));
            let panic = result.as_ref().err().map(|panic| crate::supervise::panic_message(&**panic));
            // The caller may have left; the work is done all the same.
            drop(answer.send(result.unwrap_or_else(|_| Err(StoreError::Panicked(panic.clone().unwrap_or_default())))));
            assert!(panic.is_none(), "reopens the connection");
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Commits a create intent, durably, unless its request was seen before.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], or the database's.
    pub async fn create(&self, record: VmRecord) -> Result<Created, StoreError> {
        self.run(move |database| database.create(&record)).await
    }

    /// Writes a VM's row. A row that is gone stays gone.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], or the database's.
    pub async fn put(&self, record: VmRecord, durability: Durability) -> Result<(), StoreError> {
        self.run(move |database| database.put(&record, durability)).await
    }

    /// Turns a VM's row into a tombstone. Twice is fine.
    ///
    /// # Errors
    /// The database's.
    pub async fn bury(&self, vm: VmId, now_ms: u64) -> Result<(), StoreError> {
        self.run(move |database| database.bury(vm, now_ms)).await
    }

    /// Every VM, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn all(&self) -> Result<Vec<VmRecord>, StoreError> {
        self.run(|database| database.all()).await
    }

    /// One VM.
    ///
    /// # Errors
    /// The database's.
    pub async fn get(&self, vm: VmId) -> Result<Option<VmRecord>, StoreError> {
        self.run(move |database| database.get(vm)).await
    }

    /// What a request made before, if anything.
    ///
    /// # Errors
    /// The database's.
    pub async fn made_by(&self, request: RequestId) -> Result<Option<Created>, StoreError> {
        self.run(move |database| database.made_by(request)).await
    }

    /// The VM of this id, or the latest of this name, that was deleted.
    ///
    /// # Errors
    /// The database's.
    pub async fn tombstone(&self, reference: String) -> Result<Option<Tombstone>, StoreError> {
        self.run(move |database| database.tombstone(&reference)).await
    }

    /// Panics in the writer thread.
    #[cfg(test)]
    pub(crate) async fn panic(&self) -> StoreError {
        self.run::<()>(|_| panic!("asked to")).await.expect_err("it panics")
    }
}

#[cfg(test)]
mod tests;
