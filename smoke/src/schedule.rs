//! Runs scenarios: `pure` ones fan out over the jobs, the `repodir` ones are one chain beside them, `global` ones follow one
//! at a time. Says when each ends; knows nothing of what they do.

use crate::case::Stop;
use crate::registry::{Class, Scenario};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// The most scenarios at a time, whatever was asked for.
pub(crate) const JOBS_MAX: usize = 8;

/// How one scenario ended.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) scenario: Scenario,
    pub(crate) result: Result<(), Stop>,
    pub(crate) took: Duration,
    /// What it noted on the way.
    pub(crate) log: String,
}

/// Runs every scenario and reports each as it ends, from this thread.
pub(crate) fn run_all(
    scenarios: &[Scenario],
    jobs: usize,
    run: impl Fn(&Scenario) -> (Result<(), Stop>, String) + Sync,
    mut ended: impl FnMut(Verdict),
) {
    let timed = |scenario: &Scenario| {
        let started = Instant::now();
        let (result, log) = run(scenario);
        Verdict { scenario: *scenario, result, took: started.elapsed(), log }
    };
    let of = |class| scenarios.iter().filter(move |scenario| scenario.class == class);
    // A chain is one piece of work: its scenarios follow each other on one worker.
    let mut work: VecDeque<Vec<&Scenario>> = VecDeque::new();
    let chain: Vec<&Scenario> = of(Class::RepoDir).collect();
    if !chain.is_empty() {
        work.push_back(chain);
    }
    work.extend(of(Class::Pure).map(|scenario| vec![scenario]));
    let workers = jobs.clamp(1, JOBS_MAX).min(work.len());
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        let (sender, verdicts) = mpsc::channel();
        for _ in 0..workers {
            let (sender, work, timed) = (sender.clone(), &work, &timed);
            scope.spawn(move || {
                loop {
                    let next = work.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(piece) = next else { return };
                    for scenario in piece {
                        if sender.send(timed(scenario)).is_err() {
                            return;
                        }
                    }
                }
            });
        }
        drop(sender);
        verdicts.into_iter().for_each(&mut ended);
    });
    for scenario in of(Class::Global) {
        ended(timed(scenario));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn scenario(name: &'static str, class: Class) -> Scenario {
        Scenario { name, class, line: "", run: |_| Ok(()) }
    }

    #[test]
    fn each_runs_once_and_global_ones_run_last_and_alone() {
        let scenarios = [
            scenario("g1", Class::Global),
            scenario("p1", Class::Pure),
            scenario("p2", Class::Pure),
            scenario("r1", Class::RepoDir),
            scenario("r2", Class::RepoDir),
            scenario("g2", Class::Global),
        ];
        let running = AtomicUsize::new(0);
        let mut order = Vec::new();
        run_all(
            &scenarios,
            4,
            |scenario| {
                let before = running.fetch_add(1, Ordering::SeqCst);
                assert!(scenario.class != Class::Global || before == 0, "{} is not alone", scenario.name);
                running.fetch_sub(1, Ordering::SeqCst);
                (Ok(()), scenario.name.to_owned())
            },
            |verdict| order.push(verdict.log),
        );
        assert_eq!(order.len(), scenarios.len());
        assert_eq!(order[4..], ["g1", "g2"]);
        let place = |name| order.iter().position(|ran| ran == name).unwrap();
        assert!(place("r1") < place("r2"));
    }

    #[test]
    fn pure_ones_really_run_side_by_side_but_no_more_than_asked() {
        let scenarios = [scenario("a", Class::Pure), scenario("b", Class::Pure), scenario("c", Class::Pure)];
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let meet = std::sync::Barrier::new(2);
        run_all(
            &scenarios[..2],
            2,
            |_| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                meet.wait();
                running.fetch_sub(1, Ordering::SeqCst);
                (Ok(()), String::new())
            },
            |_| {},
        );
        assert_eq!(most.load(Ordering::SeqCst), 2);
        most.store(0, Ordering::SeqCst);
        run_all(
            &scenarios,
            1,
            |_| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                running.fetch_sub(1, Ordering::SeqCst);
                (Ok(()), String::new())
            },
            |_| {},
        );
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }
}
