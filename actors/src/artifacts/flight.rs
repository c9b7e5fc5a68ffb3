//! One pull for any number of callers: each sees its progress and its end, and it lives while one of them waits.
//!
//! A caller waits as long as the receiver of its progress lives. One that leaves does not disturb the others; when the last has
//! left, the pull is cancelled: whoever pressed Ctrl-C wants no more of it, and a half-built system cannot be resumed.
//!
//! ```text
//! start ──▶ waiting for a place ──▶ Running(latest progress) ──▶ Done(result)
//!                                      └── last waiter left ──▶ cancelled; the next caller's waits for its end
//! ```
//! One that everybody has left may be past the point where it can be stopped: the next one takes what comes of it.

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
    /// Those of the same that everybody had left, and that had not come to their end when this one was started.
    before: Vec<watch::Receiver<State<T>>>,
}

/// One caller's share in a pull.
#[derive(Debug)]
pub struct Waiter<T> {
    state: watch::Receiver<State<T>>,
    interest: Arc<Interest>,
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Begins `work` on a thread that may block, as soon as there is a place for it, and once `before`, which was to make the same, has
    /// come to its end without having made it.
    pub fn start<E>(
        runtime: &Handle,
        stage: Stage,
        before: Option<&Self>,
        work: impl FnOnce(&Cancel, &Reporter) -> Result<T, E> + Send + 'static,
    ) -> (Self, Waiter<T>)
    where
        for<'a> WireError: From<&'a E>,
    {
        let cancel = Cancel::new();
        let (sender, state) = watch::channel(State::Running(None));
        let interest = Arc::new(Interest(cancel.clone()));
        let before = before.map(Self::unfinished).unwrap_or_default();
        let flight = Self { state: state.clone(), interest: Arc::downgrade(&interest), before: before.clone() };
        let steps = sender.clone();
        let reporter = Reporter::new(stage, move |progress| {
            steps.send_replace(State::Running(Some(progress)));
        });
        let (token, waiting, ended) = (cancel.token(), reporter.clone(), sender.clone());
        let handle = runtime.clone();
        let job = move |place: SemaphorePermit<'static>| {
            let result = match outcome_of(before, &handle, &cancel, &reporter) {
                Outcome::Made(value) => Ok(value),
                Outcome::Cancelled => Err(nobody_waits()),
                // A panic is this pull's end, not the thread pool's.
                Outcome::None => match catch_unwind(AssertUnwindSafe(|| work(&cancel, &reporter))) {
                    Ok(result) => result.map_err(|error| WireError::from(&error)),
                    Err(panic) => {
                        Err(WireError::new(ErrorKind::Internal, format!("a pull panicked: {}", panic_message(&*panic))))
                    }
                },
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
                            ended.send_replace(State::Done(Err(nobody_waits())));
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
        (!done(&self.state)).then(|| Waiter { state: self.state.clone(), interest })
    }

    /// True once it has ended, and all that it was to wait for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        done(&self.state) && self.before.iter().all(done)
    }

    /// What the next one has to wait for.
    fn unfinished(&self) -> Vec<watch::Receiver<State<T>>> {
        self.before.iter().chain([&self.state]).filter(|state| !done(state)).cloned().collect()
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
                () = progress.closed() => return Err(nobody_waits()),
            }
        }
    }
}

fn done<T>(state: &watch::Receiver<State<T>>) -> bool {
    matches!(*state.borrow(), State::Done(_))
}

fn nobody_waits() -> WireError {
    WireError::new(ErrorKind::Cancelled, "nobody waits for the pull any more")
}

/// What came of an earlier pull of the same.
enum Outcome<T> {
    Made(T),
    /// Nothing that anybody could use.
    None,
    /// It is not known, and nobody wants to know it any more.
    Cancelled,
}

/// Waits for the end of earlier pulls. Blocks.
fn outcome_of<T: Clone + Send + Sync + 'static>(
    before: Vec<watch::Receiver<State<T>>>,
    runtime: &Handle,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Outcome<T> {
    let token = cancel.token();
    for mut earlier in before {
        reporter.step("waiting for the end of an earlier one that was given up");
        let made = runtime.block_on(async {
            tokio::select! {
                () = token.cancelled() => Outcome::Cancelled,
                ended = earlier.wait_for(|state| matches!(state, State::Done(_))) => match ended.as_deref() {
                    Ok(State::Done(Ok(value))) => Outcome::Made(value.clone()),
                    _ => Outcome::None,
                },
            }
        });
        if !matches!(made, Outcome::None) {
            return made;
        }
    }
    Outcome::None
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
        let (flight, first) = Flight::start(runtime.handle(), Stage::ImagePull, None, move |_, reporter| {
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
        let (flight, first) = Flight::start(runtime.handle(), Stage::ImagePull, None, move |cancel, _| {
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
    fn one_that_is_begun_again_waits_for_what_was_left_and_takes_what_came_of_it() {
        let runtime = runtime();
        for result in [Ok(7), Err(DebianError::Cancelled)] {
            let made = result.is_ok();
            let (begun, running) = std_mpsc::channel();
            let (go, gate) = std_mpsc::channel::<()>();
            let (left, waiter) = Flight::start(runtime.handle(), Stage::ImagePull, None, move |_, _| {
                begun.send(()).unwrap();
                // Its last step cannot be stopped.
                gate.recv_timeout(PATIENCE).unwrap();
                result
            });
            running.recv_timeout(PATIENCE).unwrap();
            drop(waiter);
            assert!(left.join().is_none() && !left.is_done());
            let second = |value| move |_: &Cancel, _: &Reporter| Ok::<_, DebianError>(value);
            let (given_up, nobody) = Flight::start(runtime.handle(), Stage::ImagePull, Some(&left), second(8));
            drop(nobody);
            let mut state = given_up.state.clone();
            let ended = state.wait_for(|state| matches!(state, State::Done(_)));
            let ended =
                runtime.block_on(async { tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().clone() });
            assert!(matches!(ended, State::Done(Err(error)) if error.kind == ErrorKind::Cancelled));
            assert!(!given_up.is_done(), "what it waited for has not ended");
            let (_third, waiter) = Flight::start(runtime.handle(), Stage::ImagePull, Some(&given_up), second(9));
            go.send(()).unwrap();
            let (sender, _reader) = mpsc::channel(1);
            assert_eq!(runtime.block_on(waiter.wait(sender)).unwrap(), if made { 7 } else { 9 });
        }
    }

    #[test]
    fn more_than_there_are_places_for_wait_and_say_so() {
        let runtime = runtime();
        let (begun, running) = std_mpsc::channel();
        let gates: Vec<_> = (0..=AT_ONCE)
            .map(|number| {
                let (go, gate) = std_mpsc::channel::<()>();
                let begun = begun.clone();
                let flight = Flight::start(runtime.handle(), Stage::ImagePull, None, move |_, _| {
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
        let left = Flight::start(runtime.handle(), Stage::ImagePull, None, |_, _| -> Result<u32, DebianError> {
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
            Flight::<u32>::start(runtime.handle(), Stage::ImagePull, None, |_, _| -> Result<u32, DebianError> {
                panic!("a bug")
            });
        let (sender, _reader) = mpsc::channel(1);
        let error = runtime.block_on(waiter.wait(sender)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(error.to_string().contains("a bug"));
    }
}
