//! What may be asked of the files in a disk.

use super::actor::Ext4Files;
use super::operate::{change, list, read, stat};
use super::{Change, DirectoryEntry, Ext4Path, FileStat};
use crate::supervise::guard;
use actix::{Context, Handler, Message, ResponseFuture};
use futures::future::ready;
use messages::WireError;
use std::path::PathBuf;

/// Makes changes in their order, all of them or none. Answers with what is at each change's path then.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<Vec<FileStat>, WireError>")]
pub struct ChangeFiles {
    /// The disk's file, by an absolute path of this host. Nobody may have it mounted.
    pub disk: PathBuf,
    pub changes: Vec<Change>,
}

/// Asks what is at a path. Symbolic links on the way are refused, one at its end is what is described.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<FileStat, WireError>")]
pub struct StatFile {
    pub disk: PathBuf,
    pub path: Ext4Path,
}

/// Reads a regular file.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<Vec<u8>, WireError>")]
pub struct ReadFile {
    pub disk: PathBuf,
    pub path: Ext4Path,
}

/// Lists a directory, in the order of the disk, without `.` and `..`.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<Vec<DirectoryEntry>, WireError>")]
pub struct ListDirectory {
    pub disk: PathBuf,
    pub path: Ext4Path,
}

impl Handler<ChangeFiles> for Ext4Files {
    type Result = ResponseFuture<Result<Vec<FileStat>, WireError>>;

    fn handle(&mut self, ChangeFiles { disk, changes }: ChangeFiles, ctx: &mut Context<Self>) -> Self::Result {
        answered(guard(ctx, |ctx| {
            Ok::<_, WireError>(self.enqueue(disk.clone(), move |tools| change(tools, &disk, &changes), ctx))
        }))
    }
}

impl Handler<StatFile> for Ext4Files {
    type Result = ResponseFuture<Result<FileStat, WireError>>;

    fn handle(&mut self, StatFile { disk, path }: StatFile, ctx: &mut Context<Self>) -> Self::Result {
        answered(guard(ctx, |ctx| {
            Ok::<_, WireError>(self.enqueue(disk.clone(), move |tools| stat(tools, &disk, &path), ctx))
        }))
    }
}

impl Handler<ReadFile> for Ext4Files {
    type Result = ResponseFuture<Result<Vec<u8>, WireError>>;

    fn handle(&mut self, ReadFile { disk, path }: ReadFile, ctx: &mut Context<Self>) -> Self::Result {
        answered(guard(ctx, |ctx| {
            Ok::<_, WireError>(self.enqueue(disk.clone(), move |tools| read(tools, &disk, &path), ctx))
        }))
    }
}

impl Handler<ListDirectory> for Ext4Files {
    type Result = ResponseFuture<Result<Vec<DirectoryEntry>, WireError>>;

    fn handle(&mut self, ListDirectory { disk, path }: ListDirectory, ctx: &mut Context<Self>) -> Self::Result {
        answered(guard(ctx, |ctx| {
            Ok::<_, WireError>(self.enqueue(disk.clone(), move |tools| list(tools, &disk, &path), ctx))
        }))
    }
}

/// The answer to come, or why there will be none.
fn answered<T: 'static>(
    queued: Result<ResponseFuture<Result<T, WireError>>, WireError>,
) -> ResponseFuture<Result<T, WireError>> {
    queued.unwrap_or_else(|error| Box::pin(ready(Err(error))))
}
