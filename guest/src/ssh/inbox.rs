//! What a client has sent and nobody has taken yet, for all channels of a connection. russh gives a client more window as soon as
//! data has come, not when it was taken, and a channel that is not drained stops its whole connection, so that two channels (or
//! the two directions of one) can wait for each other for ever. So channels are always drained, into queues without a bound of
//! their own, and the bound is put on the window: beyond [`BACKLOG_MAX`] a client is given [`TRICKLE`] bytes at a time, which
//! it sends, and is asked to wait for a moment after each, until there is room again.

use russh::{ChannelMsg, ChannelReadHalf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// A client's usual window, in bytes.
pub(super) const WINDOW: u32 = 2 << 20;
/// What may wait in all queues of a connection before its client is slowed down. One window more may be on its way.
const BACKLOG_MAX: usize = 4 << 20;
/// The least that russh takes up again: it adjusts a window that is below half of this.
const TRICKLE: u32 = 2;
/// Between two trickles: long enough to cost nothing, short enough not to be seen in a transfer.
const MOMENT: Duration = Duration::from_millis(10);

/// How many bytes wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Backlog(Arc<AtomicUsize>);

impl Backlog {
    fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) > BACKLOG_MAX
    }

    /// The window to give next.
    pub(super) fn window(&self) -> u32 {
        if self.is_full() { TRICKLE } else { WINDOW }
    }

    /// Slows down a client that has been given a trickle and has sent it.
    pub(super) async fn slow_down(&self, data: &[u8]) {
        if self.is_full() && data.len() <= TRICKLE as usize {
            tokio::time::sleep(MOMENT).await;
        }
    }
}

/// Data that waits, or is being taken: counted for as long as this lives.
#[derive(Debug)]
pub(super) struct Waiting {
    bytes: usize,
    backlog: Backlog,
}

impl Waiting {
    fn new(bytes: usize, backlog: &Backlog) -> Self {
        backlog.0.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, backlog: backlog.clone() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.backlog.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The queue of one channel.
#[derive(Debug)]
pub(super) struct Inbox(mpsc::UnboundedReceiver<(ChannelMsg, Waiting)>);

impl Inbox {
    /// Drains a channel from now on.
    pub(super) fn new(mut channel: ChannelReadHalf, backlog: Backlog) -> Self {
        let (queue, messages) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = channel.wait().await {
                let bytes = if let ChannelMsg::Data { data } = &message { data.len() } else { 0 };
                // Where nobody wants it any more it is dropped; the channel is drained all the same.
                drop(queue.send((message, Waiting::new(bytes, &backlog))));
            }
        });
        Self(messages)
    }

    /// The next message, and what is to be kept until its data have been taken. `None` where the client is gone.
    pub(super) async fn next(&mut self) -> Option<(ChannelMsg, Waiting)> {
        self.0.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_backlog_makes_a_trickle_until_it_was_taken() {
        let backlog = Backlog::default();
        assert_eq!(backlog.window(), WINDOW);
        let first = Waiting::new(BACKLOG_MAX, &backlog);
        assert_eq!(backlog.window(), WINDOW);
        let second = Waiting::new(1, &backlog);
        assert_eq!(backlog.window(), TRICKLE);
        let slowed = tokio::time::timeout(MOMENT / 2, backlog.slow_down(&[0; TRICKLE as usize])).await;
        assert!(slowed.is_err(), "a trickle waits");
        backlog.slow_down(&[0; 3]).await;
        drop((first, second));
        assert_eq!((backlog.window(), backlog.0.load(Ordering::Relaxed)), (WINDOW, 0));
    }
}
