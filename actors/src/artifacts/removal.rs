//! Work in two parts: an actor takes no other message during the first, and goes on during the second.

use super::blocking;
use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, ResponseFuture, WrapFuture as _};
use messages::{ErrorKind, WireError};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Runs `take`, during which the actor takes no message, and then `finish` beside it. Both may block. The answer comes at the end;
/// `finish` is done also where nobody waits for that any more.
pub(crate) fn in_two_parts<A, T>(
    ctx: &mut Context<A>,
    actor: &A,
    runtime: &Handle,
    take: impl FnOnce() -> Result<T, WireError> + Send + 'static,
    finish: impl FnOnce(T) -> Result<(), WireError> + Send + 'static,
) -> ResponseFuture<Result<(), WireError>>
where
    A: Actor<Context = Context<A>>,
    T: Send + 'static,
{
    let (sender, taken) = oneshot::channel();
    let first = blocking(runtime, take).into_actor(actor).map(move |outcome, _, _| {
        // Whoever receives it lives as long as this actor's context does.
        drop(sender.send(outcome));
    });
    ctx.wait(first);
    let runtime = runtime.clone();
    Box::pin(async move {
        let gone = |_| Err(WireError::new(ErrorKind::Unavailable, "a part of the daemon is being restarted"));
        let taken = taken.await.unwrap_or_else(gone)?;
        blocking(&runtime, move || finish(taken)).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::{Handler, Message};
    use std::sync::mpsc;

    struct Keeper {
        taken: bool,
    }

    impl Actor for Keeper {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "Result<(), WireError>")]
    struct Remove {
        running: oneshot::Sender<()>,
        begun: mpsc::Receiver<()>,
        go: mpsc::Receiver<()>,
    }

    impl Handler<Remove> for Keeper {
        type Result = ResponseFuture<Result<(), WireError>>;

        fn handle(&mut self, Remove { running, begun, go }: Remove, ctx: &mut Self::Context) -> Self::Result {
            self.taken = true;
            let wait = |gate: &mpsc::Receiver<()>| {
                gate.recv_timeout(std::time::Duration::from_secs(20))
                    .map_err(|error| WireError::from_error(ErrorKind::Timeout, &error))
            };
            let take = move || {
                running.send(()).unwrap();
                wait(&begun)
            };
            in_two_parts(ctx, self, &Handle::current(), take, move |()| wait(&go))
        }
    }

    #[derive(Message)]
    #[rtype(result = "bool")]
    struct Look;

    impl Handler<Look> for Keeper {
        type Result = bool;

        fn handle(&mut self, _: Look, _: &mut Self::Context) -> bool {
            self.taken
        }
    }

    #[actix::test]
    async fn others_wait_for_the_first_part_and_not_for_the_second() {
        let keeper = Keeper { taken: false }.start();
        let (begin, begun) = mpsc::channel();
        let (finish, go) = mpsc::channel();
        let (running, first_part) = oneshot::channel();
        let mut removal = Box::pin(keeper.send(Remove { running, begun, go }));
        let mut look = Box::pin(keeper.send(Look));
        first_part.await.unwrap();
        assert!(futures::poll!(&mut look).is_pending(), "nobody sees what is half taken away");
        begin.send(()).unwrap();
        assert!(look.await.unwrap());
        assert!(keeper.send(Look).await.unwrap(), "it is answered while files are being removed");
        assert!(futures::poll!(&mut removal).is_pending());
        finish.send(()).unwrap();
        removal.await.unwrap().unwrap();
    }
}
