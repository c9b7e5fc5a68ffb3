//! QEMU's monitor protocol: one command at a time, events on the side. Bounded: QEMU may have been taken over by its guest.

use futures::StreamExt as _;
use serde_json::{Value, json};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio_util::codec::{FramedRead, LinesCodec};

/// The longest line that QEMU may send, in bytes; its longest answers here are a few hundred.
const LINE_MAX: usize = 256 << 10;
/// How long a command may take. All are short, but QEMU may wait for a CPU of a loaded host.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// Says why QEMU did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU refused `{command}`: {why}")]
    Refused { command: &'static str, why: String },
    #[error("QEMU did not answer `{0}` in time")]
    Timeout(&'static str),
    #[error("QEMU's monitor is closed")]
    Closed,
    #[error("cannot write to QEMU's monitor: {0}")]
    Write(#[source] io::Error),
    #[error("the migration ended as `{0}`")]
    Migration(String),
}

/// A connection that has been greeted and has its capabilities negotiated.
#[derive(Debug)]
pub struct Qmp {
    writer: OwnedWriteHalf,
    replies: mpsc::Receiver<Value>,
    /// Of the newest command. QEMU repeats it in the answer, which may come after we gave the command up.
    number: u64,
    /// The newest status of a migration, from its events; empty before it.
    migration: Arc<watch::Sender<String>>,
}

impl Qmp {
    /// Waits for the greeting and enters command mode: QEMU has built its machine by then.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn connect(stream: UnixStream) -> Result<Self, QmpError> {
        let (reader, writer) = stream.into_split();
        // Only one command is ever under way.
        let (reply, replies) = mpsc::channel(1);
        let migration = Arc::new(watch::Sender::new(String::new()));
        tokio::spawn(read(reader, reply, Arc::downgrade(&migration)));
        let mut qmp = Self { writer, replies, number: 0, migration };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let line = self.line(command, &arguments);
        self.writer.write_all(line.as_bytes()).await.map_err(QmpError::Write)?;
        self.reply(command).await
    }

    fn line(&mut self, command: &'static str, arguments: &Value) -> String {
        self.number += 1;
        format!("{}\n", json!({"execute": command, "arguments": arguments, "id": self.number}))
    }

    async fn reply(&mut self, command: &'static str) -> Result<Value, QmpError> {
        let (replies, number) = (&mut self.replies, self.number);
        let reply = async {
            loop {
                let reply = replies.recv().await.ok_or(QmpError::Closed)?;
                // What QEMU could not read has no number, and is the answer to what was sent last.
                if reply.get("id").is_none_or(|id| id.as_u64() == Some(number)) {
                    return Ok(reply);
                }
                tracing::warn!(%reply, "QEMU's monitor answered a command that was given up");
            }
        };
        let mut reply =
            tokio::time::timeout(COMMAND_DEADLINE, reply).await.map_err(|_| QmpError::Timeout(command))??;
        if let Some(error) = reply.get("error") {
            let why = error["desc"].as_str().unwrap_or("no reason given").to_owned();
            return Err(QmpError::Refused { command, why });
        }
        Ok(reply["return"].take())
    }

    /// Hands QEMU a descriptor under a name.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn send_descriptor(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), QmpError> {
        use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
        let line = self.line("getfd", &json!({"fdname": name}));
        let stream = self.writer.as_ref();
        let raw = [descriptor.as_raw_fd()];
        loop {
            stream.writable().await.map_err(QmpError::Write)?;
            let sent = stream.try_io(Interest::WRITABLE, || {
                let parts = [IoSlice::new(line.as_bytes())];
                let rights = [ControlMessage::ScmRights(&raw)];
                Ok(sendmsg::<UnixAddr>(stream.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
            });
            match sent {
                // A line this short is never split: the socket was writable, so it has more room than that.
                Ok(sent) if sent == line.len() => break,
                Ok(_) => return Err(QmpError::Write(io::ErrorKind::WriteZero.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(QmpError::Write(error)),
            }
        }
        self.reply("getfd").await.map(drop)
    }

    /// Waits for the migration under way.
    ///
    /// # Errors
    /// [`QmpError::Migration`] where it did not complete.
    pub async fn migrated(&mut self) -> Result<(), QmpError> {
        let over = |status: &String| matches!(status.as_str(), "completed" | "failed" | "cancelled");
        let mut status = self.migration.subscribe();
        let status = tokio::select! {
            status = status.wait_for(over) => status.map_err(|_| QmpError::Closed)?.clone(),
            // Nothing is asked meanwhile: what comes here is the end, or the answer to what was given up.
            () = async { while self.replies.recv().await.is_some() {} } => return Err(QmpError::Closed),
        };
        if status == "completed" { Ok(()) } else { Err(QmpError::Migration(status)) }
    }

    /// Forgets the status of an earlier migration.
    pub fn expect_migration(&self) {
        self.migration.send_replace(String::new());
    }
}

/// Sorts what QEMU says until it hangs up.
async fn read(reader: OwnedReadHalf, replies: mpsc::Sender<Value>, migration: Weak<watch::Sender<String>>) {
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LINE_MAX));
    while let Some(Ok(line)) = lines.next().await {
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            tracing::warn!("QEMU's monitor said something that is not JSON");
            return;
        };
        if let Some(event) = message["event"].as_str() {
            tracing::debug!(event, data = %message["data"], "QEMU");
            if event == "MIGRATION"
                && let Some(migration) = migration.upgrade()
            {
                migration.send_replace(message["data"]["status"].as_str().unwrap_or_default().to_owned());
            }
        } else if (message.get("return").is_some() || message.get("error").is_some())
            && replies.send(message).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    #[tokio::test]
    async fn an_answer_that_comes_too_late_is_nobody_elses() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, mut write) = theirs.into_split();
        let monitor = tokio::spawn(async move {
            let mut lines = BufReader::new(read).lines();
            let mut owed = None;
            while let Some(line) = lines.next_line().await.unwrap() {
                let command: Value = serde_json::from_str(&line).unwrap();
                let answer = json!({"return": command["execute"], "id": command["id"]});
                match command["execute"].as_str().unwrap() {
                    "stop" => owed = Some(answer),
                    _ => {
                        for answer in owed.take().into_iter().chain([answer]) {
                            write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                        }
                    }
                }
            }
        });
        let mut qmp = Qmp::connect(ours).await.unwrap();
        let given_up = tokio::time::timeout(Duration::from_millis(20), qmp.execute("stop", json!({}))).await;
        assert!(given_up.is_err(), "{given_up:?}");
        assert_eq!(qmp.execute("cont", json!({})).await.unwrap(), "cont");
        drop(qmp);
        monitor.await.unwrap();
    }
}
