//! Clients that stall, break the protocol or vanish: each harms its own stream only.

use crate::host::*;
use link::frames::{send_hello, write_frame};
use messages::error::ErrorKind;
use messages::guest::*;
use messages::ids::OperationId;
use messages::limits::GUEST_FRAME_MAX;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Both buffers of a stream, its mux window and some slack; far below what a stalled stream would pile up without bounds.
const STALLED_KIB: u64 = 4 << 10;

#[tokio::test]
async fn a_stalled_reader_costs_bounded_memory_and_stalls_nobody() {
    let (host, _control) = Host::booted().await;
    host.run(shell("true")).await;
    let before = host.resident_kib();
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut operation = host.open(exec(&["cat", "/dev/zero"])).await;
        operation.pid().await;
        stalled.push(operation);
    }
    // Nobody reads those. Others work, with far more data than any buffer between here and there holds.
    for _ in 0..4 {
        let finished = host.run(shell("head -c 20000000 /dev/zero")).await;
        assert_eq!(finished.stdout.len(), 20_000_000);
    }
    let grown = host.resident_kib().saturating_sub(before);
    assert!(grown < 5 * STALLED_KIB, "the agent grew by {grown} KiB");
    // Whoever reads again gets on where it stopped.
    for mut operation in stalled {
        for _ in 0..100 {
            assert!(matches!(operation.next().await, Said::Stdout(_)));
        }
        operation.vanish().await;
    }
}

#[tokio::test]
async fn a_stalled_command_takes_no_more_stdin_than_the_window() {
    let (host, _control) = Host::booted().await;
    let mut spec = exec(&["sleep", "1000"]);
    spec.stdin = true;
    let mut operation = host.open(spec).await;
    operation.pid().await;
    assert_eq!(operation.next().await, Said::Credit(messages::limits::STDIN_WINDOW));
    let chunk = vec![0; 128 << 10];
    let mut sent = 0;
    while sent < operation.credit {
        operation.send(&OperationFrame::Stdin(&chunk)).await;
        sent += chunk.len() as u64;
        // The pipe took the first 256 KiB, for which there is credit again: no more than that ever.
        if sent == u64::from(messages::limits::STDIN_WINDOW) {
            assert_eq!(operation.next().await, Said::Credit(256 << 10));
        }
    }
    assert!(sent <= 2 * u64::from(messages::limits::STDIN_WINDOW), "{sent}");
    // One byte above the credit breaks the protocol, and only this stream.
    operation.send(&OperationFrame::Stdin(&chunk)).await;
    assert_eq!(operation.next().await, Said::End);
    assert_eq!(host.run(shell("exit 3")).await.status, ExitStatus::Code(3));
}

#[tokio::test]
async fn bad_bytes_close_their_own_stream() {
    let (host, mut control) = Host::booted().await;
    let neighbour = host.open(shell("while ! [ -e go ]; do sleep 0.01; done; echo fine")).await;
    let mut hello = Vec::new();
    send_hello(&mut hello).await.unwrap();
    let floods: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &u32::MAX.to_le_bytes(),
        &[&hello[..], &u32::MAX.to_le_bytes()].concat(),
        &[&hello[..], &[3, 0, 0, 0, 99, 99, 99]].concat(),
        &[&hello[..], &[1, 0, 0, 0, 2]].concat(),
    ];
    for bytes in floods {
        let mut stream = host.stream().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let mut rest = Vec::new();
        // Closed or reset, and not a word before that.
        within(stream.read_to_end(&mut rest)).await.ok();
        assert!(rest.is_empty());
    }
    // In the middle of an operation: it ends as if its client had vanished.
    let mut operation = host.open(exec(&["sleep", "1000"])).await;
    operation.pid().await;
    operation.write.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    operation.write.flush().await.unwrap();
    assert_eq!(operation.next().await, Said::End);
    assert_eq!(control.ended(operation.id).await, ExitStatus::Signal(1));
    std::fs::write(host.directory.path().join("go"), "").unwrap();
    assert_eq!(neighbour.finish().await.stdout, b"fine\n");
}

#[tokio::test]
async fn an_id_is_used_once() {
    let (host, _control) = Host::booted().await;
    let id = OperationId([9; 8]);
    let mut first = host.open_as(id, exec(&["sleep", "1000"])).await;
    first.pid().await;
    let mut second = host.open_as(id, shell("true")).await;
    let Said::Failed(error) = second.next().await else { panic!("it ran") };
    assert_eq!(error.kind, ErrorKind::Conflict);
    first.send(&OperationFrame::Signal(9)).await;
    assert_eq!(first.finish().await.status, ExitStatus::Signal(9));
}

#[tokio::test]
async fn other_ports_are_refused_and_the_bench_port_counts() {
    let (host, _control) = Host::booted().await;
    assert!(within(host.handle.open(22)).await.is_err());
    let mut stream = within(host.handle.open(BENCH_PORT)).await.unwrap();
    let total: u64 = 5_000_000;
    stream.write_u64_le(total).await.unwrap();
    stream.write_all(&vec![1; usize::try_from(total).unwrap()]).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(within(stream.read_u64_le()).await.unwrap(), total);
}

#[tokio::test]
async fn nothing_runs_before_the_boot() {
    let mut host = Host::start().await;
    let _control = host.control().await;
    let mut operation = host.open(shell("true")).await;
    let Said::Failed(error) = operation.next().await else { panic!("it ran") };
    assert_eq!(error.kind, ErrorKind::WrongState);
}

#[tokio::test]
async fn a_bad_control_frame_makes_the_agent_redial() {
    let (mut host, mut control) = Host::booted().await;
    write_frame(&mut control.write, &[255_u8; 32], GUEST_FRAME_MAX).await.unwrap();
    let again = host.control().await;
    assert!(again.identity.is_some());
}
