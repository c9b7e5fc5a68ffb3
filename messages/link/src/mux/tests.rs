//! Both sides over an in-memory port.

use super::*;
use crate::epoch::{self, Kind};
use bytes::{Buf, BytesMut};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn pair(size: usize) -> (Mux<DuplexStream>, Mux<DuplexStream>) {
    let (near, far) = tokio::io::duplex(size);
    (host(near, Attach::Fresh), guest(far, Attach::Fresh))
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it does not hang")
}

/// Opens until the guest has begun its epoch.
async fn open(handle: &MuxHandle, port: u32) -> MuxStream {
    within(async {
        loop {
            match handle.open(port).await {
                Ok(stream) => return stream,
                Err(OpenError::NoPeer | OpenError::Io(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

async fn echo(mut listener: MuxListener) {
    while let Some(incoming) = listener.accept().await {
        if incoming.port == 9 {
            incoming.refuse().await;
            continue;
        }
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(incoming.accept().await.unwrap());
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
    }
}

#[tokio::test]
async fn streams_go_both_ways_and_are_refused() {
    let (host, guest) = pair(1000);
    tokio::spawn(host.driver.run());
    tokio::spawn(guest.driver.run());
    tokio::spawn(echo(guest.listener));
    tokio::spawn(echo(host.listener));
    let refused = {
        drop(open(&host.handle, 1).await);
        within(host.handle.open(9)).await
    };
    assert!(matches!(refused, Err(OpenError::Refused(9))));
    for handle in [&host.handle, &guest.handle] {
        let (mut read, mut write) = tokio::io::split(open(handle, 5).await);
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&copy).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut back = Vec::new();
        within(read.read_to_end(&mut back)).await.unwrap();
        assert!(back == sent);
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_stalled_stream_does_not_stall_another() {
    let (host, guest) = pair(64 << 10);
    tokio::spawn(host.driver.run());
    tokio::spawn(guest.driver.run());
    let mut listener = guest.listener;
    let stalled = tokio::spawn(async move {
        let first = listener.accept().await.unwrap().accept().await.unwrap();
        tokio::spawn(echo(listener));
        first
    });
    let mut flood = open(&host.handle, 1).await;
    let first = within(stalled).await.unwrap();
    // Fills its window, then blocks for ever: nobody reads.
    let flooder = tokio::spawn(async move { while flood.write_all(&[0; 65536]).await.is_ok() {} });
    for _ in 0..20 {
        let mut stream = open(&host.handle, 2).await;
        stream.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        within(stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, b"ping");
    }
    assert!(!flooder.is_finished());
    drop(first);
    within(flooder).await.unwrap();
}

/// A port whose far end can be swapped, as a snapshot does.
async fn relay(mut port: DuplexStream, mut ends: mpsc::Receiver<DuplexStream>) {
    let mut end = ends.recv().await.unwrap();
    loop {
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut port, &mut end) => drop(copied.unwrap()),
            next = ends.recv() => match next { Some(next) => end = next, None => return },
        }
    }
}

#[tokio::test]
async fn a_new_host_meets_a_running_guest() {
    let (port, far) = tokio::io::duplex(3000);
    let guest = guest(far, Attach::Fresh);
    tokio::spawn(guest.driver.run());
    tokio::spawn(echo(guest.listener));
    let (swap, ends) = mpsc::channel(1);
    tokio::spawn(relay(port, ends));

    let (near, end) = tokio::io::duplex(3000);
    let first = host(near, Attach::Fresh);
    swap.send(end).await.unwrap();
    let first_driver = tokio::spawn(first.driver.run());
    let mut old = open(&first.handle, 1).await;
    old.write_all(&[1; 200_000]).await.unwrap();

    let (near, end) = tokio::io::duplex(3000);
    let second = host(near, Attach::Resumed);
    swap.send(end).await.unwrap();
    tokio::spawn(second.driver.run());
    let mut stream = open(&second.handle, 1).await;
    stream.write_all(b"after").await.unwrap();
    let mut back = [0; 5];
    within(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"after");
    first_driver.abort();
}

#[tokio::test]
async fn a_restarted_guest_ends_the_old_streams() {
    let (near, port) = tokio::io::duplex(3000);
    let host = host(near, Attach::Fresh);
    tokio::spawn(host.driver.run());
    let (swap, ends) = mpsc::channel(1);
    tokio::spawn(relay(port, ends));

    let (end, far) = tokio::io::duplex(3000);
    let before = guest(far, Attach::Fresh);
    swap.send(end).await.unwrap();
    let driver = tokio::spawn(before.driver.run());
    tokio::spawn(echo(before.listener));
    let mut old = open(&host.handle, 1).await;
    old.write_all(b"x").await.unwrap();
    let mut byte = [0; 1];
    within(old.read_exact(&mut byte)).await.unwrap();

    let (end, far) = tokio::io::duplex(3000);
    let after = guest(far, Attach::Resumed);
    // The port stays open while the agent is replaced: swap first.
    swap.send(end).await.unwrap();
    driver.abort();
    tokio::spawn(after.driver.run());
    tokio::spawn(echo(after.listener));
    let mut rest = Vec::new();
    // The old stream ends, one way or the other, instead of hanging.
    drop(within(old.read_to_end(&mut rest)).await);
    assert!(rest.is_empty());
    drop(open(&host.handle, 1).await);
}

#[tokio::test]
async fn the_driver_ends_with_the_port_and_nobody_hangs() {
    let (host, guest) = pair(1000);
    let driver = tokio::spawn(host.driver.run());
    let guest_driver = tokio::spawn(guest.driver.run());
    tokio::spawn(echo(guest.listener));
    let mut stream = open(&host.handle, 1).await;
    guest_driver.abort();
    let mut rest = Vec::new();
    drop(within(stream.read_to_end(&mut rest)).await);
    assert_eq!(within(driver).await.unwrap().unwrap(), MuxEnd::PortClosed);
    assert!(matches!(within(host.handle.open(1)).await, Err(OpenError::NoPeer)));
}

#[tokio::test]
async fn one_stream_too_many_is_refused_and_the_others_live() {
    let (host, guest) = pair(64 << 10);
    tokio::spawn(host.driver.run());
    tokio::spawn(guest.driver.run());
    tokio::spawn(echo(guest.listener));
    let mut streams = Vec::new();
    let refused = loop {
        // The first may come before the guest.
        let opened =
            if streams.is_empty() { Ok(open(&host.handle, 1).await) } else { within(host.handle.open(1)).await };
        match opened {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, OpenError::TooMany), "{refused}");
    assert_eq!(streams.len(), STREAMS_MAX);
    for stream in [0, STREAMS_MAX - 1] {
        streams[stream].write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        within(streams[stream].read_exact(&mut back)).await.unwrap();
    }
    streams.truncate(STREAMS_MAX / 2);
    for _ in 0..STREAMS_MAX {
        // Many more than there is room for, one after another.
        let mut stream = open(&host.handle, 1).await;
        within(stream.shutdown()).await.unwrap();
    }
    streams[0].write_all(b"pong").await.unwrap();
}

/// Reads envelopes until one of this kind comes.
async fn next_of(kind: Kind, port: &mut DuplexStream, buffer: &mut BytesMut) -> u64 {
    loop {
        let (done, envelope) = epoch::decode(buffer);
        buffer.advance(done);
        match envelope {
            Some(envelope) if envelope.kind == kind => return envelope.epoch,
            Some(_) => continue,
            None => {}
        }
        assert!(within(port.read_buf(buffer)).await.unwrap() > 0, "the port ended");
    }
}

fn nonsense(epoch: u64) -> BytesMut {
    let mut bytes = BytesMut::new();
    epoch::encode(&mut bytes, Kind::Data, epoch, &[0xff; 100]);
    bytes
}

#[tokio::test]
async fn a_host_that_hears_nonsense_asks_for_a_new_epoch() {
    let (near, mut far) = tokio::io::duplex(3000);
    let host = host(near, Attach::Fresh);
    tokio::spawn(host.driver.run());
    let mut bytes = BytesMut::new();
    epoch::encode(&mut bytes, Kind::GuestStart, 5, &[]);
    bytes.extend_from_slice(&nonsense(5));
    far.write_all(&bytes).await.unwrap();
    next_of(Kind::HostStart, &mut far, &mut BytesMut::new()).await;
    let guest = guest(far, Attach::Fresh);
    tokio::spawn(guest.driver.run());
    tokio::spawn(echo(guest.listener));
    drop(open(&host.handle, 1).await);
}

#[tokio::test]
async fn a_guest_that_hears_nonsense_begins_a_new_epoch() {
    let (mut near, far) = tokio::io::duplex(3000);
    let guest = guest(far, Attach::Fresh);
    tokio::spawn(guest.driver.run());
    tokio::spawn(echo(guest.listener));
    let mut buffer = BytesMut::new();
    let first = next_of(Kind::GuestStart, &mut near, &mut buffer).await;
    near.write_all(&nonsense(first)).await.unwrap();
    let second = next_of(Kind::GuestStart, &mut near, &mut buffer).await;
    assert_ne!(first, second);
    let host = host(near, Attach::Resumed);
    tokio::spawn(host.driver.run());
    drop(open(&host.handle, 1).await);
}
