//! The control stream: identity, redials, acknowledgements, questions, the end.

use crate::host::*;
use messages::guest::*;
use messages::ids::BootNonce;
use messages::vm::Readiness;

#[tokio::test]
async fn ends_are_told_again_until_they_are_acknowledged() {
    let (mut host, mut control) = Host::booted().await;
    let operation = host.open(shell("exit 6")).await;
    let id = operation.id;
    operation.finish().await;
    assert_eq!(control.ended(id).await, ExitStatus::Code(6));
    drop(control);

    let mut control = host.control().await;
    let identity = control.identity.clone().unwrap();
    assert_eq!((identity.nonce, identity.readiness), (BootNonce([1; 16]), Some(Readiness::System)));
    control.send(&DaemonFrame::Welcome).await;
    assert_eq!(control.ended(id).await, ExitStatus::Code(6));
    control.send(&DaemonFrame::Acknowledge { operation: id }).await;
    assert_eq!(control.ask(GuestQuestion::Ping).await, Ok(GuestAnswer::Done));
    drop(control);

    let mut control = host.control().await;
    control.send(&DaemonFrame::Welcome).await;
    // Whatever came before the answer was told on the welcome: the end is not among it.
    control.send(&DaemonFrame::Call { call: 1, question: GuestQuestion::Ping }).await;
    assert!(matches!(control.next().await, AgentFrame::Answer { call: 1, .. }));
}

#[tokio::test]
async fn a_command_outlives_the_control_stream() {
    let (mut host, control) = Host::booted().await;
    let mut operation = host.open(shell("while ! [ -e go ]; do sleep 0.01; done; echo through")).await;
    operation.pid().await;
    drop(control);
    let mut control = host.control().await;
    assert_eq!(control.identity.clone().unwrap().operations, [operation.id]);
    control.send(&DaemonFrame::Welcome).await;
    std::fs::write(host.directory.path().join("go"), "").unwrap();
    let id = operation.id;
    assert_eq!(operation.finish().await.stdout, b"through\n");
    assert_eq!(control.ended(id).await, ExitStatus::Code(0));
}

#[tokio::test]
async fn a_new_spec_changes_who_the_guest_is() {
    let (mut host, mut control) = Host::booted().await;
    control.send(&DaemonFrame::Spec(Box::new(spec(2)))).await;
    control.until(|frame| matches!(frame, AgentFrame::Ready { level: Readiness::System, .. }).then_some(())).await;
    drop(control);
    assert_eq!(host.control().await.identity.unwrap().nonce, BootNonce([2; 16]));
}

#[tokio::test]
async fn questions_are_answered() {
    let (host, mut control) = Host::booted().await;
    let Ok(GuestAnswer::Stats(stats)) = control.ask(GuestQuestion::Stats).await else { panic!("no stats") };
    assert!(stats.memory_total_kib > 0 && stats.uptime_ms > 0 && stats.processes > 0);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Ok(GuestAnswer::Ports(ports)) = control.ask(GuestQuestion::Ports).await else { panic!("no ports") };
    assert!(ports.ports.iter().any(|entry| entry.port == port && entry.pid == Some(std::process::id())));
    drop(host);
}

#[tokio::test]
async fn a_stop_is_announced_and_ends_agent_and_commands() {
    let (mut host, mut control) = Host::booted().await;
    let mut operation = host.open(exec(&["sleep", "1000"])).await;
    let pid = operation.pid().await;
    control
        .send(&DaemonFrame::Call {
            call: 1,
            question: GuestQuestion::Stop { kind: StopKind::Reboot, deadline_ms: 5000 },
        })
        .await;
    control.until(|frame| matches!(frame, AgentFrame::Stopping { kind: StopKind::Reboot }).then_some(())).await;
    eventually("the agent has ended", || host.agent.try_wait().unwrap().is_some()).await;
    assert!(host.agent.wait().unwrap().success());
    eventually("its command has ended", || !lives(pid)).await;
}
