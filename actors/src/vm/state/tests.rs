//! The machine against a small model: whatever is sent to it, a few things always hold.

use super::*;
use messages::error::ErrorKind;
use proptest::prelude::*;

fn error() -> WireError {
    WireError::new(ErrorKind::Guest, "it broke")
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        Just(Then::Rest),
        Just(Then::Fail(error())),
        Just(Then::Start),
        Just(Then::StartLater),
        Just(Then::Delete(None))
    ]
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Creating), Just(Phase::Running), Just(Phase::Stopping), Just(Phase::Deleting)]
}

fn result() -> impl Strategy<Value = Result<(), WireError>> {
    prop_oneof![4 => Just(Ok(())), 1 => Just(Err(error()))]
}

fn timer() -> impl Strategy<Value = Timer> {
    prop_oneof![Just(Timer::Boot), Just(Timer::Guest), Just(Timer::CtrlAltDel), Just(Timer::Kill), Just(Timer::Restart)]
}

/// An event; the attempt of an outcome is filled in later: 0 means the present one, others are late.
fn event() -> impl Strategy<Value = (Event, u64)> {
    let attempt = 0;
    let readiness = prop_oneof![Just(Readiness::Agent), Just(Readiness::System), Just(Readiness::Ssh)];
    let kind = prop_oneof![Just(StopKind::Halt), Just(StopKind::Reboot)];
    let events = prop_oneof![
        any::<bool>().prop_map(|start| Event::Create { start }),
        phase().prop_map(|phase| Event::Attach { phase }),
        Just(Event::Start),
        Just(Event::Stop),
        Just(Event::Kill),
        Just(Event::Restart),
        any::<bool>().prop_map(|force| Event::Delete { force }),
        (any::<bool>(), any::<bool>(), then()).prop_map(move |(alive, was_ready, wish)| Event::Attached {
            attempt,
            alive,
            was_ready,
            wish
        }),
        result().prop_map(move |result| Event::Prepared { attempt, result }),
        result().prop_map(move |result| Event::Launched { attempt, result }),
        readiness.prop_map(move |level| Event::Ready { attempt, level }),
        Just(Event::BootFailed { attempt, error: error() }),
        kind.prop_map(move |kind| Event::GuestStopping { attempt, kind }),
        then().prop_map(move |wish| Event::Exited { attempt, wish }),
        timer().prop_map(move |timer| Event::Timeout { attempt, timer }),
        Just(Event::Released { attempt }),
        result().prop_map(move |result| Event::Removed { attempt, result }),
    ];
    (events, prop_oneof![9 => Just(0_u64), 1 => Just(1_u64)])
}

fn at_attempt(event: Event, now: Attempt) -> Event {
    match event {
        Event::Create { .. }
        | Event::Attach { .. }
        | Event::Start
        | Event::Stop
        | Event::Kill
        | Event::Restart
        | Event::Delete { .. } => event,
        Event::Attached { alive, was_ready, wish, .. } => Event::Attached { attempt: now, alive, was_ready, wish },
        Event::Prepared { result, .. } => Event::Prepared { attempt: now, result },
        Event::Launched { result, .. } => Event::Launched { attempt: now, result },
        Event::Ready { level, .. } => Event::Ready { attempt: now, level },
        Event::BootFailed { error, .. } => Event::BootFailed { attempt: now, error },
        Event::GuestStopping { kind, .. } => Event::GuestStopping { attempt: now, kind },
        Event::Exited { wish, .. } => Event::Exited { attempt: now, wish },
        Event::Timeout { timer, .. } => Event::Timeout { attempt: now, timer },
        Event::Released { .. } => Event::Released { attempt: now },
        Event::Removed { result, .. } => Event::Removed { attempt: now, result },
    }
}

/// The world as an honest worker would make it: which answer is owed, and whether a VMM lives.
#[derive(Debug, Default)]
struct World {
    owed: Option<Owed>,
    vmm: bool,
    wanted_phase: Option<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Attached,
    Prepared,
    Launched,
    Released,
    Removed,
}

impl World {
    /// Whether such an outcome can come at all now.
    fn allows(&self, event: &Event) -> bool {
        match event {
            Event::Attached { .. } => self.owed == Some(Owed::Attached),
            Event::Prepared { .. } => self.owed == Some(Owed::Prepared),
            Event::Launched { .. } => self.owed == Some(Owed::Launched),
            Event::Released { .. } => self.owed == Some(Owed::Released),
            Event::Removed { .. } => self.owed == Some(Owed::Removed),
            Event::Ready { .. } | Event::BootFailed { .. } | Event::GuestStopping { .. } | Event::Exited { .. } => {
                self.vmm
            }
            Event::Create { .. }
            | Event::Attach { .. }
            | Event::Start
            | Event::Stop
            | Event::Kill
            | Event::Restart
            | Event::Delete { .. }
            | Event::Timeout { .. } => true,
        }
    }

    fn before(&mut self, event: &Event) {
        match event {
            Event::Attached { alive, .. } => (self.owed, self.vmm) = (None, *alive),
            Event::Launched { result, .. } => (self.owed, self.vmm) = (None, result.is_ok()),
            Event::Prepared { .. } | Event::Released { .. } | Event::Removed { .. } => self.owed = None,
            Event::Exited { .. } => self.vmm = false,
            Event::Create { .. }
            | Event::Attach { .. }
            | Event::Start
            | Event::Stop
            | Event::Kill
            | Event::Restart
            | Event::Delete { .. }
            | Event::Timeout { .. }
            | Event::Ready { .. }
            | Event::BootFailed { .. }
            | Event::GuestStopping { .. } => {}
        }
    }

    fn owe(&mut self, owed: Owed) {
        assert_eq!(self.owed, None, "two steps at once: {owed:?}");
        self.owed = Some(owed);
    }

    fn run(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Attach => self.owe(Owed::Attached),
                Effect::Prepare(_) => {
                    assert!(!self.vmm, "prepared while a VMM lives");
                    self.owe(Owed::Prepared);
                }
                Effect::Launch => {
                    assert!(!self.vmm, "a second VMM");
                    self.owe(Owed::Launched);
                }
                Effect::Release => {
                    assert!(!self.vmm, "leases given back under a living VMM");
                    self.owe(Owed::Released);
                }
                Effect::Remove => {
                    assert!(!self.vmm, "files removed under a living VMM");
                    assert_eq!(self.wanted_phase, Some(Phase::Deleting), "removed before the intent was written");
                    self.owe(Owed::Removed);
                }
                Effect::Intend(phase) | Effect::Note(phase) => self.wanted_phase = Some(*phase),
                Effect::Kill | Effect::CtrlAltDel | Effect::AskGuest(_) => {
                    assert!(self.vmm, "{effect:?} without a VMM")
                }
                Effect::Arm(_) => {}
            }
        }
    }
}

/// Whether something is alive or owed in a state: then something must come that moves it on.
fn expects(state: &State) -> (Option<Owed>, Option<bool>) {
    match &state.at {
        At::New | At::Stopped | At::Failed { .. } | At::Gone { .. } | At::BackingOff => (None, Some(false)),
        At::Attaching { .. } => (Some(Owed::Attached), None),
        At::Preparing { .. } => (Some(Owed::Prepared), Some(false)),
        At::Launching { .. } => (Some(Owed::Launched), Some(false)),
        At::Cancelling { .. } => (None, Some(false)),
        At::Booting { .. } | At::Running { .. } | At::Stopping { .. } => (None, Some(true)),
        At::Releasing { .. } => (Some(Owed::Released), Some(false)),
        At::Deleting { .. } => (Some(Owed::Removed), Some(false)),
    }
}

fn check(state: &State, world: &World) {
    let (owed, vmm) = expects(state);
    match state.at {
        At::Cancelling { .. } => {
            assert!(matches!(world.owed, Some(Owed::Prepared | Owed::Launched)), "{state:?} waits for nothing");
        }
        _ => assert_eq!(world.owed, owed, "{state:?}"),
    }
    if let Some(vmm) = vmm {
        assert_eq!(world.vmm, vmm, "{state:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Nothing is started twice, nothing is taken from under a living VMM, every state waits for what will come.
    #[test]
    fn effects_fit_the_world(events in proptest::collection::vec(event(), 1..60)) {
        let mut state = State::NEW;
        let mut world = World::default();
        for (event, late) in events {
            let event = at_attempt(event, state.attempt.wrapping_sub(late));
            let present = late == 0;
            if present && !world.allows(&event) {
                continue;
            }
            if present {
                world.before(&event);
            }
            let before = state.clone();
            let (after, answer) = state.on(event.clone());
            match answer {
                Ok(effects) => {
                    if !present && !is_request(&event) {
                        prop_assert_eq!(&after, &before, "a late outcome moved it");
                        prop_assert!(effects.is_empty());
                    }
                    world.run(&effects);
                }
                Err(_) => prop_assert_eq!(&after, &before, "a denial moved it"),
            }
            check(&after, &world);
            prop_assert!(after.attempt >= before.attempt);
            state = after;
        }
    }

    /// From wherever a run of events leads, a stop is accepted, and an honest world then brings it to rest.
    #[test]
    fn a_stop_is_never_denied_and_always_ends(events in proptest::collection::vec(event(), 0..40)) {
        let (mut state, mut world) = (State::NEW, World::default());
        for (event, _) in events {
            let event = at_attempt(event, state.attempt);
            if world.allows(&event) {
                world.before(&event);
                let (after, answer) = state.on(event);
                if let Ok(effects) = answer {
                    world.run(&effects);
                }
                state = after;
            }
        }
        let (after, answer) = state.on(Event::Stop);
        prop_assert!(answer.is_ok());
        world.run(&answer.unwrap());
        state = after;
        for _ in 0..20 {
            let attempt = state.attempt;
            let event = match world.owed {
                Some(Owed::Attached) => Event::Attached { attempt, alive: false, was_ready: true, wish: Then::Rest },
                Some(Owed::Prepared) => Event::Prepared { attempt, result: Ok(()) },
                Some(Owed::Launched) => Event::Launched { attempt, result: Ok(()) },
                Some(Owed::Released) => Event::Released { attempt },
                Some(Owed::Removed) => Event::Removed { attempt, result: Ok(()) },
                None if world.vmm => Event::Exited { attempt, wish: Then::Rest },
                None => break,
            };
            world.before(&event);
            let (after, answer) = state.on(event);
            world.run(&answer.unwrap());
            state = after;
        }
        prop_assert!(
            matches!(state.at, At::New | At::Stopped | At::Failed { .. } | At::Gone { .. }),
            "{:?}", state
        );
    }

    /// With force, a delete from anywhere ends with nothing left.
    #[test]
    fn a_forced_delete_always_ends_with_nothing(events in proptest::collection::vec(event(), 0..40)) {
        let (mut state, mut world) = (State::NEW, World::default());
        for event in events.into_iter().map(|(event, _)| event).chain([Event::Delete { force: true }]) {
            let event = at_attempt(event, state.attempt);
            if world.allows(&event) {
                world.before(&event);
                let (after, answer) = state.on(event);
                if let Ok(effects) = answer {
                    world.run(&effects);
                }
                state = after;
            }
        }
        for _ in 0..20 {
            let attempt = state.attempt;
            let event = match world.owed {
                Some(Owed::Attached) => Event::Attached { attempt, alive: true, was_ready: true, wish: Then::Rest },
                Some(Owed::Prepared) => Event::Prepared { attempt, result: Ok(()) },
                Some(Owed::Launched) => Event::Launched { attempt, result: Ok(()) },
                Some(Owed::Released) => Event::Released { attempt },
                Some(Owed::Removed) => Event::Removed { attempt, result: Ok(()) },
                None if world.vmm => Event::Exited { attempt, wish: Then::StartLater },
                None => break,
            };
            world.before(&event);
            let (after, answer) = state.on(event);
            world.run(&answer.unwrap());
            state = after;
        }
        prop_assert!(matches!(state.at, At::Gone { .. }), "{:?}", state);
    }
}

fn is_request(event: &Event) -> bool {
    matches!(
        event,
        Event::Create { .. }
            | Event::Attach { .. }
            | Event::Start
            | Event::Stop
            | Event::Kill
            | Event::Restart
            | Event::Delete { .. }
    )
}

fn drive(state: State, events: Vec<Event>) -> (State, Vec<Effect>) {
    events.into_iter().fold((state, vec![]), |(state, _), event| {
        let (state, answer) = state.on(event);
        (state, answer.unwrap())
    })
}

fn running() -> State {
    let events = vec![
        Event::Create { start: true },
        Event::Prepared { attempt: 1, result: Ok(()) },
        Event::Launched { attempt: 1, result: Ok(()) },
        Event::Ready { attempt: 1, level: Readiness::Agent },
        Event::Ready { attempt: 1, level: Readiness::System },
    ];
    drive(State::NEW, events).0
}

#[test]
fn a_stop_goes_guest_then_ctrl_alt_del_then_kill() {
    let (state, effects) = drive(running(), vec![Event::Stop]);
    assert_eq!(effects, [Effect::Intend(Phase::Stopping), Effect::AskGuest(StopKind::Halt), Effect::Arm(Timer::Guest)]);
    let (state, effects) = drive(state, vec![Event::Stop]);
    assert_eq!(effects, [], "a second stop does not restart the grace timer");
    let (state, effects) = drive(state, vec![Event::Timeout { attempt: 1, timer: Timer::Guest }]);
    assert_eq!(effects, [Effect::CtrlAltDel, Effect::Arm(Timer::CtrlAltDel)]);
    let (state, effects) = drive(state, vec![Event::Timeout { attempt: 1, timer: Timer::CtrlAltDel }]);
    assert_eq!(effects, [Effect::Kill, Effect::Arm(Timer::Kill)]);
    let (state, _) =
        drive(state, vec![Event::Exited { attempt: 1, wish: Then::StartLater }, Event::Released { attempt: 1 }]);
    assert_eq!(state.at, At::Stopped, "a stopped VM does not come back by its restart policy");
}

#[test]
fn a_reboot_typed_in_the_guest_starts_it_again_and_a_poweroff_stops_it() {
    let typed = |kind| {
        let events = vec![
            Event::GuestStopping { attempt: 1, kind },
            Event::Exited { attempt: 1, wish: Then::Rest },
            Event::Released { attempt: 1 },
        ];
        drive(running(), events).0
    };
    assert_eq!(typed(StopKind::Reboot), State { attempt: 2, at: At::Preparing { purpose: Purpose::Start } });
    assert_eq!(typed(StopKind::Halt).at, At::Stopped);
}

#[test]
fn a_failed_create_is_rolled_back_and_a_failed_start_is_not() {
    let (state, effects) =
        drive(State::NEW, vec![Event::Create { start: true }, Event::Prepared { attempt: 1, result: Err(error()) }]);
    assert_eq!(
        (state.at.clone(), effects),
        (At::Releasing { then: Then::Delete(Some(error())) }, vec![Effect::Release])
    );
    let (state, _) = drive(state, vec![Event::Released { attempt: 1 }, Event::Removed { attempt: 1, result: Ok(()) }]);
    assert_eq!(state.at, At::Gone { error: Some(error()) });

    let stopped = State { attempt: 3, at: At::Stopped };
    let events = vec![
        Event::Start,
        Event::Prepared { attempt: 4, result: Ok(()) },
        Event::Launched { attempt: 4, result: Err(error()) },
        Event::Released { attempt: 4 },
    ];
    assert_eq!(drive(stopped, events).0.at, At::Failed { error: error() });
}

#[test]
fn a_running_vm_is_deleted_only_with_force() {
    let (state, answer) = running().on(Event::Delete { force: false });
    assert_eq!(answer, Err(Denied { action: "delete", state: "running" }));
    let (state, effects) = drive(state, vec![Event::Delete { force: true }]);
    assert_eq!(effects, [Effect::Intend(Phase::Deleting), Effect::Kill, Effect::Arm(Timer::Kill)]);
    assert_eq!(state.published(), VmState::Deleting);
}

/// A VM that an earlier daemon left running, after these requests, when it is known whether its VMM lives.
fn found(phase: Phase, requests: &[Event], alive: bool) -> (State, Vec<Effect>) {
    let attached = Event::Attached { attempt: 0, alive, was_ready: true, wish: Then::Fail(error()) };
    let events = [&[Event::Attach { phase }], requests, &[attached]].concat();
    drive(State::NEW, events)
}

#[test]
fn what_is_asked_of_a_vm_that_is_being_looked_for_is_done_when_it_is_found() {
    let asked = |kind| vec![Effect::AskGuest(kind), Effect::Arm(Timer::Guest)];
    assert_eq!(found(Phase::Running, &[Event::Stop], true).1, asked(StopKind::Halt));
    assert_eq!(found(Phase::Stopping, &[], true).1, asked(StopKind::Halt), "an earlier daemon's stop");
    let killed = [Effect::Intend(Phase::Stopping), Effect::Kill, Effect::Arm(Timer::Kill)];
    assert_eq!(found(Phase::Running, &[Event::Kill], true).1, killed);
    assert_eq!(found(Phase::Running, &[Event::Stop, Event::Kill], true).1, killed);
    let (state, effects) = found(Phase::Running, &[Event::Restart], true);
    assert_eq!(effects[1..], asked(StopKind::Reboot));
    let at = At::Stopping { stage: Stage::Guest, then: Then::Start };
    assert_eq!(state.at, at);
    assert_eq!(found(Phase::Running, &[Event::Restart], false).0.at, At::Releasing { then: Then::Start });
    assert_eq!(found(Phase::Running, &[Event::Restart, Event::Stop], true).1, asked(StopKind::Halt));
}

#[test]
fn a_vm_that_was_up_before_its_daemon_ended_has_no_deadline() {
    let (state, effects) = found(Phase::Running, &[], true);
    assert_eq!((state.at, effects), (At::Booting { again: true }, vec![Effect::Note(Phase::Running)]));
    let attached = Event::Attached { attempt: 0, alive: true, was_ready: false, wish: Then::Rest };
    let (_, effects) = drive(State::NEW, vec![Event::Attach { phase: Phase::Running }, attached]);
    assert_eq!(effects, [Effect::Note(Phase::Running), Effect::Arm(Timer::Boot)], "one that never was");
}

#[test]
fn a_stop_that_takes_back_a_start_is_written() {
    let (state, _) = drive(running(), vec![Event::Restart]);
    assert_eq!(drive(state.clone(), vec![Event::Stop]).1, [Effect::Intend(Phase::Stopping)]);
    let ended = Event::Exited { attempt: 1, wish: Then::StartLater };
    let (releasing, _) = drive(running(), vec![ended]);
    assert_eq!(drive(releasing.clone(), vec![Event::Stop]).1, [Effect::Intend(Phase::Stopping)]);
    let (waiting, _) = drive(releasing, vec![Event::Released { attempt: 1 }]);
    assert_eq!(drive(waiting, vec![Event::Stop]).1, [Effect::Intend(Phase::Stopped)]);
}
