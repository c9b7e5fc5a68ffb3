//! Feeds any bytes to every decoder of the wire: the first byte chooses which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use messages::frame::{Hello, decode, decode_borrowed};
use messages::guest::{AgentFrame, DaemonFrame, OperationFrame, OutputFrame};
use messages::privileged::{PrivilegedRequest, PrivilegedResponse};
use messages::reply::ServerFrame;
use messages::request::Request;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, payload)) = bytes.split_first() else { return };
    match choice % 9 {
        0 => drop(Hello::decode(payload)),
        1 => drop(decode::<Request>(payload)),
        2 => drop(decode::<ServerFrame>(payload)),
        3 => drop(decode::<PrivilegedRequest>(payload)),
        4 => drop(decode::<PrivilegedResponse>(payload)),
        5 => drop(decode::<AgentFrame>(payload)),
        6 => drop(decode::<DaemonFrame>(payload)),
        7 => drop(decode_borrowed::<OperationFrame<'_>>(payload)),
        _ => drop(decode_borrowed::<OutputFrame<'_>>(payload)),
    }
});
