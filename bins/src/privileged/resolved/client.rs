//! The helper's end of the names keeper: starts it while still root, and asks it.

use super::wire::{Request, SENTENCE_MAX};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// The flag that makes this program the names keeper.
const FLAG: &str = "--keep-names";
/// Where the system bus is, and the variable that says otherwise (D-Bus specification, "well-known message bus instances").
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
const SYSTEM_BUS_VARIABLE: &str = "DBUS_SYSTEM_BUS_ADDRESS";
/// How long it may take for everything: some calls to systemd-resolved, or to firewalld.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The names keeper, or why there is none.
#[derive(Debug)]
pub(in crate::privileged) enum NamesKeeper {
    /// Started; not spoken to yet.
    Started(std::os::unix::net::UnixStream, Child),
    Ready(UnixStream, Child),
    /// A sentence.
    Absent(String),
}

impl NamesKeeper {
    /// Starts it for the bridges of `owner_uid`, with what this process has now: must come before the helper is confined.
    pub(in crate::privileged) fn start(owner_uid: u32) -> Self {
        if std::env::var_os(SYSTEM_BUS_VARIABLE).is_none() && !Path::new(SYSTEM_BUS).exists() {
            return Self::Absent("this host has no D-Bus".to_owned());
        }
        let started = || -> io::Result<Self> {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            let child = Command::new(std::env::current_exe()?)
                .args([FLAG, "--owner", &owner_uid.to_string()])
                .current_dir("/")
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::null())
                .spawn()?;
            ours.set_nonblocking(true)?;
            Ok(Self::Started(ours, child))
        };
        started().unwrap_or_else(|error| Self::Absent(format!("the names keeper did not start: {error}")))
    }

    /// Has `.vm` asked of an address by way of an interface.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(in crate::privileged) async fn route(&mut self, index: u32, address: Ipv4Addr) -> Result<(), String> {
        self.ask(Request::Route { index, address }).await
    }

    /// Takes that back; nothing to take back is fine.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(in crate::privileged) async fn revert(&mut self, index: u32) -> Result<(), String> {
        match self {
            Self::Absent(_) => Ok(()),
            Self::Started(..) | Self::Ready(..) => self.ask(Request::Revert { index }).await,
        }
    }

    /// Has firewalld, where it runs, let an interface's traffic pass.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(in crate::privileged) async fn trust(&mut self, index: u32) -> Result<(), String> {
        self.ask(Request::Trust { index }).await
    }

    /// Takes that back; nothing to take back is fine.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(in crate::privileged) async fn distrust(&mut self, index: u32) -> Result<(), String> {
        match self {
            Self::Absent(_) => Ok(()),
            Self::Started(..) | Self::Ready(..) => self.ask(Request::Distrust { index }).await,
        }
    }

    async fn ask(&mut self, request: Request) -> Result<(), String> {
        let gone = |error: io::Error| format!("the names keeper is gone ({error}): restart the network helper");
        let (mut stream, mut child) = match std::mem::replace(self, Self::Absent("it is being asked".to_owned())) {
            Self::Absent(why) => {
                *self = Self::Absent(why.clone());
                return Err(why);
            }
            Self::Ready(stream, child) => (stream, child),
            Self::Started(stream, child) => (UnixStream::from_std(stream).map_err(gone)?, child),
        };
        match tokio::time::timeout(ANSWER_TIME, exchange(&mut stream, request)).await {
            Ok(Ok(answer)) => {
                *self = Self::Ready(stream, child);
                answer
            }
            // A half answer may still come: this pipe is of no use any more, and closing it ends the keeper.
            late_or_broken => {
                let error = match late_or_broken {
                    Ok(Err(error)) => error,
                    Ok(Ok(_)) | Err(_) => io::ErrorKind::TimedOut.into(),
                };
                drop(stream);
                // Reaped if it is dead; if it is not, it ends by itself and is reaped with the helper.
                child.try_wait().ok();
                let why = gone(error);
                *self = Self::Absent(why.clone());
                Err(why)
            }
        }
    }
}

async fn exchange(stream: &mut UnixStream, request: Request) -> io::Result<Result<(), String>> {
    stream.write_all(&request.encode()).await?;
    let length = usize::from(stream.read_u16_le().await?);
    if length > SENTENCE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut sentence = vec![0; length];
    stream.read_exact(&mut sentence).await?;
    let sentence = String::from_utf8(sentence).map_err(io::Error::other)?;
    Ok(if sentence.is_empty() { Ok(()) } else { Err(sentence) })
}
