//! One pull for any number of callers: each sees its progress and its end, and it lives while one of them waits.
//!
//! A caller waits as long as the receiver of its progress lives. One that leaves does not disturb the others; when the last has
//! left, the pull is cancelled: whoever pressed Ctrl-C wants no more of it, and a half-built system cannot be resumed.
//!
//! ```text
//! start ──▶ waiting for a place ──▶ Running(latest progress) ──▶ Done(result)
//!                                      └── last waiter left ──▶ cancelled; the next caller starts afresh
//! ```

use super::{Cancel, Reporter};
use crate::supervise::panic_message;
use messages::reply::{Progress, Stage};
use messages::{ErrorKind, WireError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};

/// How many go on at once, in the whole daemon. Each holds up to five of its blocking threads for as long as it takes, of which VMs
/// need some to start.
pub const AT_ONCE: usize = 8;

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// What the waiters see. A slow one misses steps, never the end.
#[derive(Debug, Clone)]
enum State<T> {
    Running(Option<Progress>),
    Done(Result<T, WireError>),
}

/// Shared by the waiters; the last one's drop cancels the pull. Cancelling one that is done does nothing.
#[derive(Debug)]
struct Interest(Cancel);

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A pull under way, as its actor keeps it.
#[derive(Debug)]
pub struct Flight<T> {
    state: watch::Receiver<State<T>>,
    interest: Weak<Interest>,
}

/// One caller's share in a pull.
#[derive(Debug)]
pub struct Waiter<T> {
    state: watch::Receiver<State<T>>,
    interest: Arc<Interest>,
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Begins `work` on a thread that may block, as soon as there is a place for it.
    pub fn start<E>(
        runtime: &Handle,
        stage: Stage,
        work: impl FnOnce(&Cancel, &Reporter) -> Result<T, E> + Send + 'static,
    ) -> (Self, Waiter<T>)
    where
        for<'a> WireError: From<&'a E>,
    {
        let cancel = Cancel::new();
        let (sender, state) = watch::channel(State::Running(None));
        let interest = Arc::new(Interest(cancel.clone()));
        let flight = Self { state: state.clone(), interest: Arc::downgrade(&interest) };
        let steps = sender.clone();
        let reporter = Reporter::new(stage, move |progress| {
            steps.send_replace(State::Running(Some(progress)));
        });
        let (token, waiting, ended) = (cancel.token(), reporter.clone(), sender.clone());
        let job = move |place: SemaphorePermit<'static>| {
            // A panic is this pull's end, not the thread pool's.
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&cancel, &reporter)));
            let result = match outcome {
                Ok(result) => result.map_err(|error| WireError::from(&error)),
                Err(panic) => {
                    Err(WireError::new(ErrorKind::Internal, format!("a pull panicked: {}", panic_message(&*panic))))
                }
            };
            sender.send_replace(State::Done(result));
            drop(place);
        };
        match PLACES.try_acquire() {
            Ok(place) => drop(runtime.spawn_blocking(move || job(place))),
            Err(_) => {
                waiting.step(format!("waiting for one of {AT_ONCE} pulls to end"));
                let pool = runtime.clone();
                runtime.spawn(async move {
                    let place = tokio::select! {
                        place = PLACES.acquire() => place.expect("the semaphore is never closed"),
                        () = token.cancelled() => {
                            let nobody = WireError::new(ErrorKind::Cancelled, "nobody waits for the pull any more");
                            ended.send_replace(State::Done(Err(nobody)));
                            return;
                        }
                    };
                    pool.spawn_blocking(move || job(place));
                });
            }
        }
        (flight, Waiter { state, interest })
    }

    /// Joins it; `None` where it has ended or everybody has left it.
    #[must_use]
    pub fn join(&self) -> Option<Waiter<T>> {
        let interest = self.interest.upgrade()?;
        (!self.is_done()).then(|| Waiter { state: self.state.clone(), interest })
    }

    /// True once it has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(*self.state.borrow(), State::Done(_))
    }
}

impl<T: Clone + Send + Sync + 'static> Waiter<T> {
    /// Passes progress on until the end, or until nobody reads it.
    ///
    /// # Errors
    /// The pull's, or `Cancelled` where the reader has gone.
    pub async fn wait(mut self, progress: mpsc::Sender<Progress>) -> Result<T, WireError> {
        loop {
            let step = match &*self.state.borrow_and_update() {
                State::Running(step) => step.clone(),
                State::Done(result) => return result.clone(),
            };
            if let Some(step) = step {
                // Full: the reader is slow and will see the next step.
                drop(progress.try_send(step));
            }
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() {
                    return Err(WireError::new(ErrorKind::Internal, "a pull ended without a result"));
                },
                () = progress.closed() => {
                    return Err(WireError::new(ErrorKind::Cancelled, "nobody waits for the pull any more"));
                }
            }
        }
    }
}

impl<T> Waiter<T> {
    /// True if this is the last one who waits.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.interest) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::DebianError;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc as std_mpsc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    #[test]
    fn ten_callers_share_one_pull_and_its_progress() {
        let runtime = runtime();
        let runs = Arc::new(AtomicU32::new(0));
        let (go, gate) = std_mpsc::channel::<()>();
        let counted = Arc::clone(&runs);
        let (flight, first) = Flight::start(runtime.handle(), Stage::ImagePull, move |_, reporter| {
            counted.fetch_add(1, Ordering::SeqCst);
            reporter.step("half way");
            gate.recv_timeout(PATIENCE).unwrap();
            Ok::<_, DebianError>(42)
        });
        let waiters: Vec<_> = (0..9).map(|_| flight.join().unwrap()).chain([first]).collect();
        let (results, steps) = runtime.block_on(async {
            let mut tasks = Vec::new();
            let mut readers = Vec::new();
            for waiter in waiters {
                let (sender, reader) = mpsc::channel(16);
                tasks.push(tokio::spawn(waiter.wait(sender)));
                readers.push(reader);
            }
            let mut steps = Vec::new();
            for reader in &mut readers {
                steps.push(tokio::time::timeout(PATIENCE, reader.recv()).await.unwrap().unwrap().detail);
            }
            go.send(()).unwrap();
            let mut results = Vec::new();
            for task in tasks {
                results.push(tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap());
            }
            (results, steps)
        });
        assert_eq!((results, steps), (vec![42; 10], vec!["half way".to_owned(); 10]));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(flight.join().is_none(), "it has ended");
    }

    #[test]
    fn one_who_leaves_disturbs_nobody_and_the_last_one_ends_it() {
        let runtime = runtime();
        let (ended, end) = std_mpsc::channel();
        let (flight, first) = Flight::start(runtime.handle(), Stage::ImagePull, move |cancel, _| {
            while !cancel.is_cancelled() {
                std::thread::yield_now();
            }
            ended.send(()).unwrap();
            Err::<u32, _>(DebianError::Cancelled)
        });
        let second = flight.join().unwrap();
        runtime.block_on(async {
            let (sender, reader) = mpsc::channel(1);
            drop(reader);
            let error = tokio::time::timeout(PATIENCE, first.wait(sender)).await.unwrap().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Cancelled);
        });
        assert!(second.is_alone());
        assert!(end.try_recv().is_err(), "somebody still waits");
        drop(second);
        end.recv_timeout(PATIENCE).unwrap();
        assert!(flight.join().is_none(), "a pull that everybody has left is not joined");
    }

    #[test]
    fn more_than_there_are_places_for_wait_and_say_so() {
        let runtime = runtime();
        let (begun, running) = std_mpsc::channel();
        let gates: Vec<_> = (0..=AT_ONCE)
            .map(|number| {
                let (go, gate) = std_mpsc::channel::<()>();
                let begun = begun.clone();
                let flight = Flight::start(runtime.handle(), Stage::ImagePull, move |_, _| {
                    begun.send(number).unwrap();
                    gate.recv_timeout(PATIENCE).unwrap();
                    Ok::<_, DebianError>(number)
                });
                (go, flight)
            })
            .collect();
        let mut first: Vec<_> = (0..AT_ONCE).map(|_| running.recv_timeout(PATIENCE).unwrap()).collect();
        first.sort_unstable();
        assert_eq!(first, (0..AT_ONCE).collect::<Vec<_>>());
        let mut gates = gates.into_iter();
        let (first_go, _first) = gates.next().unwrap();
        let (last_go, (flight, waiter)) = gates.next_back().unwrap();
        let State::Running(Some(step)) = flight.state.borrow().clone() else { panic!("it does not say that it waits") };
        assert!(step.detail.contains("waiting") && running.try_recv().is_err(), "{step:?}");
        // One that everybody has left while it waited is never begun.
        let left = Flight::start(runtime.handle(), Stage::ImagePull, |_, _| -> Result<u32, DebianError> {
            panic!("begun for nobody")
        });
        let mut state = left.0.state.clone();
        drop(left.1);
        let ended = state.wait_for(|state| matches!(state, State::Done(_)));
        let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().clone() });
        assert!(matches!(ended, State::Done(Err(error)) if error.kind == ErrorKind::Cancelled));
        first_go.send(()).unwrap();
        assert_eq!(running.recv_timeout(PATIENCE).unwrap(), AT_ONCE, "the next has the place of the one that ended");
        last_go.send(()).unwrap();
        let (sender, _reader) = mpsc::channel(1);
        assert_eq!(runtime.block_on(waiter.wait(sender)).unwrap(), AT_ONCE);
        for (go, _) in gates {
            go.send(()).unwrap();
        }
    }

    #[test]
    fn a_panic_is_every_waiters_error() {
        let runtime = runtime();
        let (_flight, waiter) =
            Flight::<u32>::start(runtime.handle(), Stage::ImagePull, |_, _| -> Result<u32, DebianError> {
                panic!("a bug")
            });
        let (sender, _reader) = mpsc::channel(1);
        let error = runtime.block_on(waiter.wait(sender)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(error.to_string().contains("a bug"));
    }
}
