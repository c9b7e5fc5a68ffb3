//! The pool's state: which numbers have a tap, who holds which, and what is to be made or removed. Pure: no clock, no I/O.
//!
//! Each call returns what has to be done; the end of it comes back through [`Pool::made`] or [`Pool::removed`]. There is
//! never more than one effect under way for a number.

use messages::ids::VmId;
use messages::privileged::TapNumber;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What to do about a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Make(TapNumber),
    Remove(TapNumber),
}

/// The answer to a wish for a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// It is there.
    Now(TapNumber),
    /// It is the VM's, and being made.
    Soon(TapNumber),
}

/// Every tap that the network has room for is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} addresses of the VMs' network are taken")]
pub(super) struct Dry {
    pub(super) capacity: usize,
}

/// The device behind a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    /// Not there; the number is reserved by its holder.
    Absent,
    Making,
    Ready,
    Removing,
}

/// Whether a lease outlives a failure to make its tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tenure {
    /// The first wish: if there is no tap, there is no lease.
    New,
    /// The VM has had this number before, and may be running on it.
    Settled,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    device: Device,
    holder: Option<(VmId, Tenure)>,
}

/// The state.
#[derive(Debug)]
pub(super) struct Pool {
    /// Every number that has an address.
    numbers: BTreeSet<TapNumber>,
    /// How many free taps to keep ready.
    size: usize,
    /// Every number with a device, a holder, or both.
    slots: BTreeMap<TapNumber, Slot>,
    /// The same leases, by holder.
    held: HashMap<VmId, TapNumber>,
}

impl Pool {
    pub(super) fn new(numbers: impl IntoIterator<Item = TapNumber>, size: usize) -> Self {
        Self { numbers: numbers.into_iter().collect(), size, slots: BTreeMap::new(), held: HashMap::new() }
    }

    pub(super) fn capacity(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn leased(&self) -> usize {
        self.held.len()
    }

    pub(super) fn ready(&self) -> usize {
        self.slots.values().filter(|slot| slot.holder.is_none() && slot.device == Device::Ready).count()
    }

    pub(super) fn leases(&self) -> Vec<(VmId, TapNumber)> {
        self.held.iter().map(|(vm, number)| (*vm, *number)).collect()
    }

    /// Takes leases over from before the daemon's start. A number that two VMs claim stays with the first.
    pub(super) fn adopt(&mut self, leases: impl IntoIterator<Item = (VmId, TapNumber)>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (vm, number) in leases {
            let taken = self.slots.get(&number).is_some_and(|slot| slot.holder.is_some());
            if taken || self.held.contains_key(&vm) || !self.numbers.contains(&number) {
                continue;
            }
            effects.extend(self.hold(vm, number, Tenure::Settled));
        }
        effects
    }

    /// Learns which taps exist. They are made again, which costs little: their bridge or MTU may have changed since.
    pub(super) fn found(&mut self, taps: impl IntoIterator<Item = TapNumber>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for number in taps {
            if self.slots.contains_key(&number) {
                continue;
            }
            let wanted = self.numbers.contains(&number) && self.free() < self.size;
            let (device, effect) = if wanted {
                (Device::Making, Effect::Make(number))
            } else {
                (Device::Removing, Effect::Remove(number))
            };
            self.slots.insert(number, Slot { device, holder: None });
            effects.push(effect);
        }
        effects
    }

    /// Forgets free taps that are not there any more: somebody removed them.
    pub(super) fn keep_only(&mut self, taps: &[TapNumber]) {
        let is_gone = |number: &TapNumber, slot: &Slot| {
            slot.holder.is_none() && slot.device == Device::Ready && !taps.contains(number)
        };
        self.slots.retain(|number, slot| !is_gone(number, slot));
    }

    /// Gives the VM a tap: the one it holds, the one it wants, one that is ready, or a new one, in this order.
    pub(super) fn lease(&mut self, vm: VmId, wanted: Option<TapNumber>) -> Result<(Granted, Vec<Effect>), Dry> {
        let number = match self.held.get(&vm) {
            Some(number) => *number,
            None => wanted
                .filter(|number| self.is_free(*number))
                .or_else(|| self.choose())
                .ok_or(Dry { capacity: self.capacity() })?,
        };
        let effects: Vec<Effect> = self.hold(vm, number, Tenure::New).into_iter().collect();
        let slot = self.slots.get_mut(&number).expect("`hold` made it");
        if slot.device == Device::Ready {
            slot.holder = Some((vm, Tenure::Settled));
            return Ok((Granted::Now(number), effects));
        }
        Ok((Granted::Soon(number), effects))
    }

    /// Takes a VM's tap back; none is fine.
    pub(super) fn give_back(&mut self, vm: VmId) -> Vec<Effect> {
        let Some(number) = self.held.remove(&vm) else { return Vec::new() };
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.holder = None;
            if slot.device == Device::Absent {
                self.slots.remove(&number);
            }
        }
        self.trim()
    }

    /// A tap was made, or was not. Says who may have it now.
    pub(super) fn made(&mut self, number: TapNumber, result: Result<(), ()>) -> (Option<VmId>, Vec<Effect>) {
        let Some(slot) = self.slots.get_mut(&number).filter(|slot| slot.device == Device::Making) else {
            return (None, Vec::new());
        };
        match (result, slot.holder) {
            (Ok(()), holder) => {
                slot.device = Device::Ready;
                slot.holder = holder.map(|(vm, _)| (vm, Tenure::Settled));
                (holder.map(|(vm, _)| vm), self.trim())
            }
            (Err(()), Some((vm, Tenure::Settled))) => {
                slot.device = Device::Absent;
                (Some(vm), Vec::new())
            }
            (Err(()), holder) => {
                self.slots.remove(&number);
                let vm = holder.map(|(vm, _)| vm);
                self.held.retain(|held, _| Some(*held) != vm);
                (vm, Vec::new())
            }
        }
    }

    /// A tap was removed, or was not. Whoever took its number meanwhile gets a new one.
    pub(super) fn removed(&mut self, number: TapNumber, result: Result<(), ()>) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(&number).filter(|slot| slot.device == Device::Removing) else {
            return Vec::new();
        };
        match (slot.holder, result) {
            (Some(_), _) => {
                slot.device = Device::Making;
                vec![Effect::Make(number)]
            }
            (None, Ok(())) => {
                self.slots.remove(&number);
                Vec::new()
            }
            // Nobody can know whether it is still there: the helper may have died between act and answer. Forgotten, it is
            // made anew where it is wanted, which is harmless, and found again by the next look where it is not.
            (None, Err(())) => {
                self.slots.remove(&number);
                Vec::new()
            }
        }
    }

    /// Orders new taps until the pool is full.
    pub(super) fn refill(&mut self) -> Vec<Effect> {
        let missing = self.size.saturating_sub(self.free());
        let unused: Vec<TapNumber> =
            self.numbers.iter().filter(|number| !self.slots.contains_key(number)).take(missing).copied().collect();
        unused
            .into_iter()
            .map(|number| {
                self.slots.insert(number, Slot { device: Device::Making, holder: None });
                Effect::Make(number)
            })
            .collect()
    }

    /// Free taps, those in the making included.
    fn free(&self) -> usize {
        let free = |slot: &&Slot| slot.holder.is_none() && matches!(slot.device, Device::Making | Device::Ready);
        self.slots.values().filter(free).count()
    }

    fn is_free(&self, number: TapNumber) -> bool {
        self.numbers.contains(&number) && self.slots.get(&number).is_none_or(|slot| slot.holder.is_none())
    }

    /// The lowest free number of the soonest kind.
    fn choose(&self) -> Option<TapNumber> {
        let free = |device: Device| {
            // A tap that an earlier, larger network left has a slot until it is removed, but no address.
            let is = |(number, slot): &(&TapNumber, &Slot)| {
                slot.holder.is_none() && slot.device == device && self.numbers.contains(number)
            };
            self.slots.iter().find(is).map(|(number, _)| *number)
        };
        free(Device::Ready)
            .or_else(|| free(Device::Making))
            .or_else(|| self.numbers.iter().find(|number| !self.slots.contains_key(number)).copied())
            .or_else(|| free(Device::Removing))
    }

    fn hold(&mut self, vm: VmId, number: TapNumber, tenure: Tenure) -> Option<Effect> {
        let slot = self.slots.entry(number).or_insert(Slot { device: Device::Absent, holder: None });
        slot.holder = Some(slot.holder.unwrap_or((vm, tenure)));
        self.held.insert(vm, number);
        (slot.device == Device::Absent).then(|| {
            slot.device = Device::Making;
            Effect::Make(number)
        })
    }

    /// Removes free taps beyond the pool's size, the highest first.
    fn trim(&mut self) -> Vec<Effect> {
        let surplus = self.free().saturating_sub(self.size);
        let idle = |slot: &Slot| slot.holder.is_none() && slot.device == Device::Ready;
        let victims: Vec<TapNumber> =
            self.slots.iter().rev().filter(|(_, slot)| idle(slot)).take(surplus).map(|(number, _)| *number).collect();
        for number in &victims {
            self.slots.insert(*number, Slot { device: Device::Removing, holder: None });
        }
        victims.into_iter().map(Effect::Remove).collect()
    }
}
