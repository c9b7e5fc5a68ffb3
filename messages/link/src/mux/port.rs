//! The port under the multiplexer: envelopes in and out, and which epoch is current.
//!
//! Shared between the driver, which outlives epochs, and one yamux connection per epoch ([`EpochIo`]). Both live in one task,
//! so the mutex is never waited for; it is there because yamux keeps its socket for itself.

use super::Attach;
use super::input::Input;
use crate::epoch::{self, Kind, OpenEnvelope, RESYNC_LEN};
use bytes::{Buf, BytesMut};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much may wait to be written before the multiplexer has to.
const WRITE_HIGH_WATER: usize = 128 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Guest,
}

/// The port and everything that survives an epoch.
#[derive(Debug)]
pub(crate) struct Port<T> {
    io: T,
    side: Side,
    input: Input,
    /// Encoded envelopes, the first perhaps half written: never thrown away, or the other side would read on into the next.
    output: BytesMut,
    /// The envelope at the end of `output` that the multiplexer is filling.
    open: Option<OpenEnvelope>,
    epoch: Option<u64>,
    /// An epoch that has begun and that no session has taken up yet.
    begun: Option<u64>,
    ended: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Port<T> {
    pub(crate) fn new(io: T, side: Side, attach: Attach) -> Self {
        let mut port = Self {
            io,
            side,
            input: Input::default(),
            output: BytesMut::new(),
            open: None,
            epoch: None,
            begun: None,
            ended: false,
        };
        if attach == Attach::Resumed {
            port.output.resize(RESYNC_LEN, 0);
        }
        match (side, attach) {
            (Side::Guest, _) => port.begin_epoch(),
            (Side::Host, Attach::Resumed) => epoch::encode(&mut port.output, Kind::HostStart, 0, &[]),
            (Side::Host, Attach::Fresh) => {}
        }
        port
    }

    pub(crate) const fn side(&self) -> Side {
        self.side
    }

    /// Names a new epoch. It must be unlike all others of this port, not secret: the hasher's seed never waits for entropy.
    fn begin_epoch(&mut self) {
        let number = RandomState::new().hash_one(0_u8);
        self.seal();
        epoch::encode(&mut self.output, Kind::GuestStart, number, &[]);
        self.enter(number);
    }

    /// Leaves an epoch whose session was broken: names the next, or asks for it.
    fn restart(&mut self) {
        match self.side {
            Side::Guest => self.begin_epoch(),
            Side::Host => {
                self.seal();
                self.epoch = None;
                self.input.drop_payload();
                epoch::encode(&mut self.output, Kind::HostStart, 0, &[]);
            }
        }
    }

    fn is_in(&self, epoch: u64) -> bool {
        self.epoch == Some(epoch) && self.begun.is_none() && !self.ended
    }

    fn enter(&mut self, number: u64) {
        self.epoch = Some(number);
        self.begun = Some(number);
        self.seal();
        self.input.drop_payload();
    }

    /// Reads until there is payload for the current epoch or the epoch has changed.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.input.payload().is_empty() && self.begun.is_none() && !self.ended {
            if let Some((kind, epoch)) = self.input.next_envelope() {
                match (kind, self.side) {
                    (Kind::Data, _) if Some(epoch) == self.epoch => {}
                    (Kind::GuestStart, Side::Host) => self.enter(epoch),
                    (Kind::HostStart, Side::Guest) => self.begin_epoch(),
                    // Of an older epoch, or our own words come back.
                    (Kind::Data, _) | (Kind::GuestStart, Side::Guest) | (Kind::HostStart, Side::Host) => {
                        self.input.drop_payload();
                    }
                }
                continue;
            }
            let mut room = ReadBuf::new(self.input.room());
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut room))?;
            let read = room.filled().len();
            self.input.came(read);
            self.ended = read == 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the envelope being filled. One of an epoch gone by goes out all the same: the other side drops it.
    fn seal(&mut self) {
        if let Some(envelope) = self.open.take() {
            envelope.seal(&mut self.output);
        }
    }

    /// Takes some bytes of the multiplexer for the current epoch.
    fn append(&mut self, epoch: u64, bytes: &[u8]) -> usize {
        let output = &mut self.output;
        let room = self.open.get_or_insert_with(|| OpenEnvelope::begin(output, epoch)).room(output);
        let length = room.min(bytes.len());
        output.extend_from_slice(&bytes[..length]);
        if length == room {
            self.seal();
        }
        length
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seal();
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

/// A port shared by the driver and the session of the current epoch.
#[derive(Debug)]
pub(crate) struct SharedPort<T>(Arc<Mutex<Port<T>>>);

impl<T> Clone for SharedPort<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> SharedPort<T> {
    pub(crate) fn new(port: Port<T>) -> Self {
        Self(Arc::new(Mutex::new(port)))
    }

    fn lock(&self) -> MutexGuard<'_, Port<T>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether this epoch lasts, and the port too.
    pub(crate) fn is_in(&self, epoch: u64) -> bool {
        self.lock().is_in(epoch)
    }

    /// Leaves an epoch whose session was broken, unless it is over already.
    pub(crate) fn restart(&self, epoch: u64) {
        let mut port = self.lock();
        if port.is_in(epoch) {
            port.restart();
        }
    }

    /// Waits for a new epoch; `None` where the port has ended.
    pub(crate) fn poll_next_epoch(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<EpochIo<T>>>> {
        let mut port = self.lock();
        loop {
            // What is waiting (a start, resync zeros) goes out while we wait; a full port is no reason not to read.
            if let Poll::Ready(Err(error)) = port.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            if let Some(epoch) = port.begun.take() {
                return Poll::Ready(Ok(Some(EpochIo { shared: self.clone(), epoch })));
            }
            if port.ended {
                return Poll::Ready(Ok(None));
            }
            port.input.drop_payload();
            ready!(port.poll_fill(cx))?;
        }
    }
}

/// The byte stream of one epoch; ends when the next begins.
#[derive(Debug)]
pub(crate) struct EpochIo<T> {
    shared: SharedPort<T>,
    epoch: u64,
}

impl<T: AsyncRead + AsyncWrite + Unpin> EpochIo<T> {
    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    fn check(&self, port: &Port<T>) -> io::Result<()> {
        if port.epoch == Some(self.epoch) { Ok(()) } else { Err(io::ErrorKind::ConnectionReset.into()) }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> futures::io::AsyncRead for EpochIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut port = self.shared.lock();
        self.check(&port)?;
        ready!(port.poll_fill(cx))?;
        if self.check(&port).is_err() {
            return Poll::Ready(Ok(0));
        }
        let length = port.input.payload().len().min(into.len());
        into[..length].copy_from_slice(&port.input.payload()[..length]);
        port.input.took(length);
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> futures::io::AsyncWrite for EpochIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut port = self.shared.lock();
        self.check(&port)?;
        if port.output.len() >= WRITE_HIGH_WATER {
            ready!(port.poll_flush(cx))?;
        }
        Poll::Ready(Ok(port.append(self.epoch, bytes)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut port = self.shared.lock();
        self.check(&port)?;
        port.poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The port itself stays open for the next epoch.
        self.poll_flush(cx)
    }
}
