//! Makes a guest's frame safe to keep and to show: lists and texts within bounds, no control characters.
//!
//! A frame's length is bounded, but a vector of empty strings takes 24 times its length in memory, and text from a guest ends
//! up on the user's terminal.

use messages::error::WireError;
use messages::guest::{AgentFrame, GuestAnswer};
use messages::limits::{ERROR_MESSAGE_MAX, LIST_MAX};

/// The longest chain of causes or list of hints; real ones have four or five.
const CHAIN_MAX: usize = 32;
/// The longest name of a program or a protocol.
const NAME_MAX: usize = 64;

/// A frame whose lists are longer than any honest agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest sent a list of {length} {what}")]
pub struct ListTooLong {
    pub what: &'static str,
    pub length: usize,
}

pub(super) fn check(mut frame: AgentFrame) -> Result<AgentFrame, ListTooLong> {
    match &mut frame {
        AgentFrame::Identify { running: Some(running), .. } => {
            bounded("operations", running.operations.len(), LIST_MAX)?;
            running.warning.iter_mut().for_each(|text| clean(text, ERROR_MESSAGE_MAX));
        }
        AgentFrame::Ready { warning: Some(text), .. } => clean(text, ERROR_MESSAGE_MAX),
        AgentFrame::BootFailed(error) | AgentFrame::Answer { result: Err(error), .. } => clean_error(error)?,
        AgentFrame::Answer { result: Ok(GuestAnswer::Ports(ports)), .. } => {
            bounded("ports", ports.ports.len(), LIST_MAX)?;
            for port in &mut ports.ports {
                clean(&mut port.protocol, NAME_MAX);
                port.process.iter_mut().for_each(|text| clean(text, NAME_MAX));
            }
        }
        AgentFrame::Identify { running: None, .. }
        | AgentFrame::Ready { warning: None, .. }
        | AgentFrame::Answer { result: Ok(GuestAnswer::Done | GuestAnswer::Stats(_)), .. }
        | AgentFrame::OperationStarted { .. }
        | AgentFrame::OperationEnded { .. }
        | AgentFrame::Stopping { .. } => {}
    }
    Ok(frame)
}

fn clean_error(error: &mut WireError) -> Result<(), ListTooLong> {
    bounded("causes", error.chain.len(), CHAIN_MAX)?;
    bounded("hints", error.hints.len(), CHAIN_MAX)?;
    error.chain.iter_mut().chain(&mut error.hints).for_each(|text| clean(text, ERROR_MESSAGE_MAX));
    if error.chain.is_empty() {
        error.chain.push("the guest gave no reason".to_owned());
    }
    Ok(())
}

fn bounded(what: &'static str, length: usize, limit: usize) -> Result<(), ListTooLong> {
    if length > limit { Err(ListTooLong { what, length }) } else { Ok(()) }
}

/// One line, no control characters, at most `limit` bytes.
pub(super) fn clean(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
    }
    if text.chars().any(char::is_control) {
        *text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::error::ErrorKind;

    #[test]
    fn text_for_a_terminal_has_no_control_characters() {
        let error = WireError::new(ErrorKind::Guest, "mount \x1b]0;evil\x07 failed\r\n");
        let Ok(AgentFrame::BootFailed(error)) = check(AgentFrame::BootFailed(error)) else { panic!() };
        assert_eq!(error.chain, ["mount  ]0;evil  failed  "]);
    }

    #[test]
    fn a_list_that_no_agent_sends_is_refused() {
        let chain = vec![String::new(); 200_000];
        let error = WireError { kind: ErrorKind::Guest, chain, hints: Vec::new() };
        let frame = AgentFrame::Answer { call: 1, result: Err(error) };
        assert_eq!(check(frame), Err(ListTooLong { what: "causes", length: 200_000 }));
    }
}
