//! Keeps actors alive across panics, and tells their keeper when one ends.
//!
//! `actix::Supervisor` restarts an actor after `ctx.stop()`, never after a panic. Two remedies live here:
//! * [`guard`] and [`guard_future`] turn a panic in a handler into an error and a restart, with the mailbox kept. For
//!   singletons started under `Supervisor`; they rebuild their state in `Supervised::restarting`.
//! * [`Ticket`] reaches a keeper from its drop, after a stop and after a panic alike. VM actors hold one: the registry
//!   builds a fresh actor from the store.
//!
//! It knows no actor of ours and no policy about which of them matter.

use actix::fut::{ActorFutureExt as _, WrapFuture as _};
use actix::{Actor, ActorContext as _, AtomicResponse, Context};
use futures::FutureExt as _;
use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A handler panicked; its actor has been restarted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an actor panicked: {0}")]
pub struct Panicked(pub String);

impl From<Panicked> for messages::WireError {
    fn from(panic: Panicked) -> Self {
        Self::from_error(messages::ErrorKind::Internal, &panic)
            .hint("this is a bug of banger's: see `banger daemon logs`")
    }
}

/// What a panic said.
#[must_use]
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

fn restart<A: Actor<Context = Context<A>>>(ctx: &mut Context<A>, panic: &(dyn Any + Send)) -> Panicked {
    let message = panic_message(panic);
    tracing::error!(actor = std::any::type_name::<A>(), error = %message, "actor panicked; restarting it");
    ctx.stop();
    Panicked(message)
}

/// Runs a handler; a panic becomes an error for the caller and a restart of the actor.
///
/// # Errors
/// What `f` returns, or [`Panicked`].
pub fn guard<A, T, E>(ctx: &mut Context<A>, f: impl FnOnce(&mut Context<A>) -> Result<T, E>) -> Result<T, E>
where
    A: Actor<Context = Context<A>>,
    E: From<Panicked>,
{
    catch_unwind(AssertUnwindSafe(|| f(ctx))).unwrap_or_else(|panic| Err(restart(ctx, &*panic).into()))
}

/// [`guard`] for handlers without a result.
pub fn guard_unit<A>(ctx: &mut Context<A>, f: impl FnOnce(&mut Context<A>))
where
    A: Actor<Context = Context<A>>,
{
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(ctx))) {
        restart(ctx, &*panic);
    }
}

/// [`guard`] for a handler that awaits. The actor takes no other message meanwhile: only for work that is short and bounded.
pub fn guard_future<A, T, E>(
    actor: &A,
    future: impl Future<Output = Result<T, E>> + 'static,
) -> AtomicResponse<A, Result<T, E>>
where
    A: Actor<Context = Context<A>>,
    T: 'static,
    E: From<Panicked> + 'static,
{
    AtomicResponse::new(Box::pin(
        AssertUnwindSafe(future)
            .catch_unwind()
            .into_actor(actor)
            .map(|result, _, ctx: &mut Context<A>| result.unwrap_or_else(|panic| Err(restart(ctx, &*panic).into()))),
    ))
}

/// For a message whose receiver may be gone: then whoever comes after it finds out by itself.
pub fn told(sent: Result<(), actix::MailboxError>) {
    if let Err(error) = sent {
        tracing::debug!(error = %error, "a message found its actor gone");
    }
}

/// How its holder ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    Panicked,
}

/// Held by an actor; its drop runs a function, after a stop *and* after a panic.
pub struct Ticket(Option<Box<dyn FnOnce(Ended) + Send + Sync>>);

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket")
    }
}

impl Ticket {
    /// `on_drop` must not block or panic: it may run while a panic unwinds.
    #[must_use]
    pub fn new(on_drop: impl FnOnce(Ended) + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(on_drop)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(on_drop) = self.0.take() {
            on_drop(if std::thread::panicking() { Ended::Panicked } else { Ended::Stopped });
        }
    }
}

/// How often something may be restarted, and how long to wait before the next time. Takes the clock as an argument.
#[derive(Clone, Debug)]
pub struct Restarts {
    limit: usize,
    window: Duration,
    times: VecDeque<Instant>,
}

impl Restarts {
    /// At most `limit` restarts within `window`.
    #[must_use]
    pub const fn new(limit: usize, window: Duration) -> Self {
        Self { limit, window, times: VecDeque::new() }
    }

    /// The wait before this restart (100 ms, doubling up to 10 s), or `None` where there were too many.
    pub fn next(&mut self, now: Instant) -> Option<Duration> {
        while self.times.front().is_some_and(|time| now.saturating_duration_since(*time) > self.window) {
            self.times.pop_front();
        }
        if self.times.len() >= self.limit {
            return None;
        }
        let doublings = u32::try_from(self.times.len()).unwrap_or(u32::MAX).min(7);
        self.times.push_back(now);
        Some((Duration::from_millis(100) * 2_u32.pow(doublings)).min(Duration::from_secs(10)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::{Handler, Message, Supervised, Supervisor};
    use std::sync::mpsc;

    #[derive(Default)]
    struct Counter(u32);
    impl Actor for Counter {
        type Context = Context<Self>;
    }
    impl Supervised for Counter {
        fn restarting(&mut self, _: &mut Context<Self>) {
            self.0 = 0;
        }
    }

    #[derive(Message)]
    #[rtype(result = "Result<u32, Panicked>")]
    struct Add(u32);
    impl Handler<Add> for Counter {
        type Result = Result<u32, Panicked>;
        fn handle(&mut self, Add(n): Add, ctx: &mut Context<Self>) -> Self::Result {
            guard(ctx, |_| {
                assert!(n < 100, "too much");
                self.0 += n;
                Ok(self.0)
            })
        }
    }

    #[derive(Message)]
    #[rtype(result = "Result<u32, Panicked>")]
    struct AddLater(u32);
    impl Handler<AddLater> for Counter {
        type Result = AtomicResponse<Self, Result<u32, Panicked>>;
        fn handle(&mut self, AddLater(n): AddLater, _: &mut Context<Self>) -> Self::Result {
            self.0 += 1;
            guard_future(self, async move {
                tokio::task::yield_now().await;
                assert!(n < 100, "too much later");
                Ok(n)
            })
        }
    }

    #[test]
    fn a_panicking_handler_is_answered_and_the_actor_comes_back() {
        actix::System::new().block_on(async {
            let addr = Supervisor::start(|_| Counter::default());
            assert_eq!(addr.send(Add(3)).await.unwrap(), Ok(3));
            let (failed, queued) = tokio::join!(addr.send(Add(100)), addr.send(Add(4)));
            assert_eq!(failed.unwrap(), Err(Panicked("too much".into())));
            assert_eq!(queued.unwrap(), Ok(4), "state was reset and the queued message answered");
            assert_eq!(addr.send(AddLater(100)).await.unwrap(), Err(Panicked("too much later".into())));
            assert_eq!(addr.send(Add(5)).await.unwrap(), Ok(5));
        });
    }

    struct Holder(#[expect(dead_code, reason = "held for its drop")] Ticket);
    impl Actor for Holder {
        type Context = Context<Self>;
    }
    #[derive(Message)]
    #[rtype(result = "()")]
    struct End {
        panic: bool,
    }
    impl Handler<End> for Holder {
        type Result = ();
        fn handle(&mut self, End { panic }: End, ctx: &mut Context<Self>) {
            assert!(!panic, "asked to");
            ctx.stop();
        }
    }

    #[test]
    fn a_ticket_tells_a_stop_from_a_panic() {
        for (panic, expected) in [(true, Ended::Panicked), (false, Ended::Stopped)] {
            let (told, heard) = mpsc::channel();
            actix::System::new().block_on(async move {
                let ticket = Ticket::new(move |how| told.send(how).expect("the test waits"));
                assert_eq!(Holder(ticket).start().send(End { panic }).await.is_err(), panic);
            });
            assert_eq!(heard.recv_timeout(Duration::from_secs(5)).unwrap(), expected);
        }
    }

    #[test]
    fn restarts_back_off_and_give_up() {
        let mut restarts = Restarts::new(3, Duration::from_secs(60));
        let start = Instant::now();
        let waits: Vec<_> = (0..4).map(|_| restarts.next(start)).collect();
        assert_eq!(
            waits,
            [100, 200, 400].map(|ms| Some(Duration::from_millis(ms))).into_iter().chain([None]).collect::<Vec<_>>()
        );
        assert_eq!(restarts.next(start + Duration::from_secs(61)), Some(Duration::from_millis(100)));
    }
}
