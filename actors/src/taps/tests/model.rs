//! Whatever happens in whatever order: no tap has two holders, nothing held is removed, and the pool fills up in the end.

use crate::taps::pool::{Effect, Granted, Pool};
use messages::ids::VmId;
use messages::privileged::{Subnet, TapNumber, guest_address, guest_taps};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

#[derive(Clone, Debug)]
enum Event {
    Lease(u8, Option<u16>),
    GiveBack(u8),
    Adopt(u8, u16),
    Found(Vec<u16>),
    Refill,
    /// Ends one of the effects under way.
    End {
        which: prop::sample::Index,
        succeeds: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12_u8, any::<Option<u16>>()).prop_map(|(vm, wanted)| Event::Lease(vm, wanted.map(|n| n % 10))),
        3 => (0..12_u8).prop_map(Event::GiveBack),
        1 => (0..12_u8, 0..10_u16).prop_map(|(vm, number)| Event::Adopt(vm, number)),
        1 => prop::collection::vec(0..12_u16, 0..12).prop_map(Event::Found),
        2 => Just(Event::Refill),
        6 => (any::<prop::sample::Index>(), prop::bool::weighted(0.8))
            .prop_map(|(which, succeeds)| Event::End { which, succeeds }),
    ]
}

fn vm(number: u8) -> VmId {
    VmId([number; 8])
}

/// What the world looks like from outside the pool.
#[derive(Default)]
struct Model {
    devices: BTreeSet<TapNumber>,
    under_way: Vec<Effect>,
    holders: BTreeMap<TapNumber, VmId>,
}

fn number_of(effect: Effect) -> TapNumber {
    match effect {
        Effect::Make(number) | Effect::Remove(number) => number,
    }
}

impl Model {
    fn start(&mut self, effects: Vec<Effect>) -> Result<(), TestCaseError> {
        for effect in effects {
            let number = number_of(effect);
            prop_assert!(!self.under_way.iter().any(|e| number_of(*e) == number), "two effects for {number:?}");
            if let Effect::Remove(number) = effect {
                prop_assert!(!self.holders.contains_key(&number), "{number:?} is held and removed");
            }
            self.under_way.push(effect);
        }
        Ok(())
    }

    fn hold(&mut self, number: TapNumber, vm: VmId) -> Result<(), TestCaseError> {
        prop_assert!(self.holders.get(&number).is_none_or(|holder| *holder == vm), "{number:?} has two holders");
        prop_assert!(self.holders.iter().all(|(n, holder)| *holder != vm || *n == number), "{vm} holds two");
        self.holders.insert(number, vm);
        Ok(())
    }

    fn release(&mut self, vm: VmId) {
        self.holders.retain(|_, holder| *holder != vm);
    }

    fn end(&mut self, pool: &mut Pool, effect: Effect, succeeds: bool) -> Result<(), TestCaseError> {
        let result = if succeeds { Ok(()) } else { Err(()) };
        match effect {
            Effect::Make(number) => {
                if succeeds {
                    self.devices.insert(number);
                }
                let (woken, effects) = pool.made(number, result);
                prop_assert_eq!(woken, self.holders.get(&number).copied());
                self.sync(pool);
                self.start(effects)
            }
            Effect::Remove(number) => {
                // Also where it failed: the helper may have died between act and answer.
                self.devices.remove(&number);
                let effects = pool.removed(number, result);
                self.start(effects)
            }
        }
    }

    /// A lease whose tap could not be made may be gone; everything else must agree.
    fn sync(&mut self, pool: &Pool) {
        let held: BTreeMap<TapNumber, VmId> = pool.leases().into_iter().map(|(vm, number)| (number, vm)).collect();
        assert!(held.iter().all(|(number, vm)| self.holders.get(number) == Some(vm)));
        self.holders = held;
    }
}

fn subnet(prefix: u8) -> Subnet {
    Subnet { gateway: Ipv4Addr::new(10, 0, 0, 1), prefix, ipv6: None }
}

proptest! {
    #[test]
    fn the_pool_keeps_its_promises(size in 0..5_usize, events in prop::collection::vec(event(), 0..120)) {
        let all: Vec<TapNumber> = (0..8).map(TapNumber).collect();
        let mut pool = Pool::new(all.clone(), size);
        let mut model = Model::default();
        for event in events {
            match event {
                Event::Lease(id, wanted) => {
                    let free = all.len() - model.holders.len();
                    let had = model.holders.iter().find(|(_, holder)| **holder == vm(id)).map(|(n, _)| *n);
                    let wanted = wanted.map(TapNumber);
                    match pool.lease(vm(id), wanted) {
                        Ok((granted, effects)) => {
                            let (Granted::Now(number) | Granted::Soon(number)) = granted;
                            prop_assert!(all.contains(&number));
                            prop_assert!(had.is_none_or(|had| had == number), "a second lease gives the same");
                            if let Some(wanted) = wanted.filter(|w| had.is_none() && all.contains(w) && !model.holders.contains_key(w)) {
                                prop_assert_eq!(number, wanted);
                            }
                            if matches!(granted, Granted::Now(_)) {
                                prop_assert!(model.devices.contains(&number), "granted what is not there");
                            }
                            model.hold(number, vm(id))?;
                            model.start(effects)?;
                        }
                        Err(dry) => {
                            prop_assert_eq!((free, dry.capacity), (0, all.len()));
                        }
                    }
                }
                Event::GiveBack(id) => {
                    model.release(vm(id));
                    let effects = pool.give_back(vm(id));
                    model.start(effects)?;
                }
                Event::Adopt(id, number) => {
                    let effects = pool.adopt([(vm(id), TapNumber(number))]);
                    for (holder, number) in pool.leases() {
                        model.hold(number, holder)?;
                    }
                    model.start(effects)?;
                }
                Event::Found(numbers) => {
                    // Only what exists can be found, and whoever looks sees nothing that is under way.
                    let found: Vec<TapNumber> = numbers.into_iter().map(TapNumber).collect();
                    model.devices.extend(&found);
                    let effects = pool.found(found);
                    model.start(effects)?;
                }
                Event::Refill => {
                    let effects = pool.refill();
                    model.start(effects)?;
                }
                Event::End { which, succeeds } => {
                    if !model.under_way.is_empty() {
                        let effect = model.under_way.remove(which.index(model.under_way.len()));
                        model.end(&mut pool, effect, succeeds)?;
                    }
                }
            }
            prop_assert_eq!(pool.leased(), model.holders.len());
        }
        // Quiet, and everything succeeds: the pool is as full as it should be, and no fuller.
        for _ in 0..100 {
            let effects = pool.refill();
            model.start(effects)?;
            while let Some(effect) = model.under_way.pop() {
                model.end(&mut pool, effect, true)?;
            }
        }
        let room = all.len() - pool.leased();
        prop_assert!(pool.ready() >= size.min(room), "{} ready of {size}, room for {room}", pool.ready());
    }
}

#[test]
fn a_number_has_an_address_of_its_own_and_never_the_gateways() {
    assert_eq!(guest_address(subnet(24), TapNumber(0)), Some(Ipv4Addr::new(10, 0, 0, 2)));
    let count = |prefix| guest_taps(subnet(prefix)).count();
    assert_eq!((count(29), count(28), count(24)), (5, 13, 253));
    assert_eq!(count(16), 1023, "the ports of a bridge");
    let gateway_inside = Subnet { gateway: Ipv4Addr::new(10, 0, 0, 4), prefix: 29, ipv6: None };
    let given: Vec<String> =
        guest_taps(gateway_inside).map(|n| guest_address(gateway_inside, n).unwrap().to_string()).collect();
    assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"]);
}

#[test]
fn a_pool_that_is_dry_says_how_large_it_is() {
    let mut pool = Pool::new((0..2).map(TapNumber), 0);
    for id in 0..2 {
        pool.lease(vm(id), None).unwrap();
    }
    assert_eq!(pool.lease(vm(9), None).unwrap_err().to_string(), "all 2 addresses of the VMs' network are taken");
}

#[test]
fn free_taps_that_somebody_removed_are_made_again() {
    let mut pool = Pool::new((0..9).map(TapNumber), 2);
    for effect in pool.refill() {
        let Effect::Make(number) = effect else { panic!("{effect:?}") };
        pool.made(number, Ok(()));
    }
    pool.lease(vm(1), Some(TapNumber(0))).unwrap();
    // The one that is held is not the pool's to forget: its VM runs on it, or finds out.
    pool.keep_only(&[]);
    assert_eq!((pool.ready(), pool.leased()), (0, 1));
    assert_eq!(pool.refill(), [Effect::Make(TapNumber(1)), Effect::Make(TapNumber(2))]);
}
