//! What a guest cannot make the daemon hold for it.

use super::*;

/// Whatever is sent, nothing waits and nothing grows.
#[tokio::test]
async fn what_a_guest_does_not_take_is_bounded() {
    let mut host = host();
    let agent = Agent::identified(&host.path).await;
    let connection = host.connected().await;
    let sent =
        (0..1_000_000).find(|_| matches!(host.link.send(connection, &DaemonFrame::Welcome), Err(CallError::Behind)));
    assert!(sent.is_some_and(|sent| sent < 10_000), "{sent:?}");
    assert!(matches!(host.disconnected().await, (_, IdentifyError::Dropped)));
    drop(agent);
}

/// Each identity is answered with a whole boot spec.
#[tokio::test]
async fn an_agent_identifies_itself_once() {
    let mut host = host();
    let mut agent = Agent::identified(&host.path).await;
    host.connected().await;
    agent.send(&identity(None)).await;
    assert!(matches!(host.disconnected().await, (_, IdentifyError::IdentityAgain)));
}
