//! What the network of a VM costs: the helper is asked as the daemon asks it, for an instance of its own that has no VMs.
//!
//! The goals are times, so the baseline of each line is the goal itself. A lease from the pool asks the helper for nothing; its
//! test is in `actors/src/taps`.

use super::RUNS;
use super::figures::{Figure, Goal, median, ms};
use crate::case::{Case, Stop};
use messages::frame::{self, HEADER_LEN, Hello};
use messages::ids::InstanceId;
use messages::limits::{HELLO_FRAME_MAX, PRIVILEGED_FRAME_MAX};
use messages::privileged::{
    Grant, GrantTarget, PrivilegedOperation, PrivilegedReply, PrivilegedRequest, PrivilegedResponse, Subnet, TapNumber,
    default_bridge_name,
};
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const INSTANCE: InstanceId = InstanceId([0xbe, 0xac, 0x01]);
const SUBNET: Subnet = Subnet { gateway: Ipv4Addr::new(172, 19, 0, 1), prefix: 24, ipv6: None };
/// What a tap may take that was not made in advance, in milliseconds.
const TAP_GOAL: f64 = 5.0;
/// What the rules of [`VMS`] VMs may take, in milliseconds.
const RULES_GOAL: f64 = 100.0;
const VMS: u16 = 100;
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let mut helper = Helper::connect(case)?;
    let figures = timed(&mut helper);
    helper.ask(PrivilegedOperation::RemoveInstance { instance: INSTANCE })?;
    figures
}

fn timed(helper: &mut Helper) -> Result<Vec<Figure>, Stop> {
    let bridge = default_bridge_name(INSTANCE);
    helper.ask(PrivilegedOperation::EnsureBridge { instance: INSTANCE, bridge: bridge.clone(), subnet: SUBNET })?;
    helper.ask(PrivilegedOperation::EnsureNat { instance: INSTANCE, bridge: bridge.clone(), subnet: SUBNET })?;
    let (mut taps, mut rules) = (Vec::new(), Vec::new());
    for tap in (0..VMS).map(TapNumber) {
        let operation =
            PrivilegedOperation::EnsureTap { instance: INSTANCE, bridge: bridge.clone(), tap, mtu: Some(1500) };
        taps.push(ms(helper.ask(operation)?));
    }
    let targets = |tap: u16| [GrantTarget::Tap(TapNumber(tap + 1)), GrantTarget::Tcp(80), GrantTarget::Udp(69)];
    let grants: Vec<Grant> =
        (0..VMS).flat_map(|tap| targets(tap).map(|to| Grant { from: TapNumber(tap), to })).collect();
    for _ in 0..RUNS {
        let (bridge, grants) = (bridge.clone(), grants.clone());
        let operation = PrivilegedOperation::SetGrants { instance: INSTANCE, bridge, subnet: SUBNET, grants };
        rules.push(ms(helper.ask(operation)?));
    }
    let figure = |name: &str, measured: f64, goal: f64, runs: usize| Figure {
        name: name.to_owned(),
        measured,
        baseline: goal,
        goal: Goal::AtMost(1.0),
        runs,
        remark: "the baseline is the goal".to_owned(),
    };
    Ok(vec![
        figure("tap, address and rules, not from the pool (ms)", median(&taps), TAP_GOAL, taps.len()),
        figure("grants of 100 VMs in one transaction (ms)", median(&rules), RULES_GOAL, RUNS),
    ])
}

/// A conversation with `bangerd-root`; root may have one.
struct Helper {
    stream: UnixStream,
    number: u64,
}

impl Helper {
    fn connect(case: &Case<'_>) -> Result<Self, Stop> {
        let mut stream = UnixStream::connect(case.world.base.join("r/root.sock"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(&frame::encode(&Hello::ours(), HELLO_FRAME_MAX)?)?;
        let hello: Hello = read(&mut stream)?;
        hello.check()?;
        Ok(Self { stream, number: 0 })
    }

    /// Asks, and says how long the answer took.
    fn ask(&mut self, operation: PrivilegedOperation) -> Result<Duration, Stop> {
        self.number += 1;
        let request = PrivilegedRequest { number: self.number, operation };
        let bytes = frame::encode(&request, PRIVILEGED_FRAME_MAX)?;
        let started = Instant::now();
        self.stream.write_all(&bytes)?;
        let response: PrivilegedResponse = read(&mut self.stream)?;
        let took = started.elapsed();
        match response.result {
            Ok(PrivilegedReply::Done | PrivilegedReply::Rewritten) => Ok(took),
            Ok(other) => Err(Stop::Failed(format!("the helper answers {other:?}"))),
            Err(error) => Err(error.into()),
        }
    }
}

fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T, Stop> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; frame::payload_length(header, PRIVILEGED_FRAME_MAX)?];
    stream.read_exact(&mut payload)?;
    Ok(frame::decode(&payload)?)
}
