//! The last words of a guest whose VMM has ended: told, all of them, before the drain is.

use super::*;
use messages::guest::StopKind;

/// What lies in the stream of a VMM that has ended is told before the drain is, however late it is taken.
#[tokio::test]
async fn a_drain_waits_for_the_last_words() {
    let mut host = host();
    host.link.drain();
    assert!(matches!(host.event().await, LinkEvent::Drained), "nobody is there");
    let mut agent = Agent::identified(&host.path).await;
    host.connected().await;
    host.link.drain();
    // The stream is up: the drain is not told before its end, and what is said meanwhile comes first.
    for _ in 0..20 {
        agent.send(&ready("")).await;
    }
    agent.send(&AgentFrame::Stopping { kind: StopKind::Reboot }).await;
    drop(agent);
    let mut told = Vec::new();
    loop {
        match host.event().await {
            LinkEvent::Frame { frame, .. } => told.push(frame),
            LinkEvent::Disconnected { why: IdentifyError::Closed, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told.len(), 21);
    assert_eq!(told.last(), Some(&AgentFrame::Stopping { kind: StopKind::Reboot }));
    assert!(matches!(host.event().await, LinkEvent::Drained));
}

/// A dial that has said nothing yet may be about to.
#[tokio::test]
async fn a_drain_waits_for_who_is_still_dialling() {
    let mut host = host();
    let mut agent = Agent::dial(&host.path).await;
    host.link.drain();
    agent.send(&identity(None)).await;
    agent.send(&AgentFrame::Stopping { kind: StopKind::Reboot }).await;
    drop(agent);
    host.connected().await;
    assert!(matches!(host.event().await, LinkEvent::Frame { frame: AgentFrame::Stopping { .. }, .. }));
    host.disconnected().await;
    assert!(matches!(host.event().await, LinkEvent::Drained));
}

/// A frame of ours that finds the agent gone does not take along what the agent said before it went.
#[tokio::test]
async fn a_failed_write_loses_no_words() {
    const FRAMES: usize = 30;
    let mut host = host();
    let mut agent = Agent::identified(&host.path).await;
    let connection = host.connected().await;
    // Nobody takes the events: most of these stay in the socket.
    for _ in 0..FRAMES {
        agent.send(&ready("")).await;
    }
    drop(agent);
    let failing = async {
        while host.link.send(connection, &DaemonFrame::Welcome).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, failing).await.expect("the sender is told");
    for count in 0..FRAMES {
        let event = host.event().await;
        assert!(matches!(event, LinkEvent::Frame { .. }), "after {count} frames: {event:?}");
    }
    assert!(matches!(host.disconnected().await, (gone, _) if gone == connection));
}
