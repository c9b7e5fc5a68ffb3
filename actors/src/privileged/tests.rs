//! The client against a scripted helper on a real socket: absent, restarted, of another version, silent.

use super::{Perform, PrivilegedClient};
use actix::{Actor, Addr, Supervisor};
use link::frames::{FrameReader, send_hello, write_frame};
use messages::WireError;
use messages::error::ErrorKind;
use messages::frame::{Hello, MAGIC};
use messages::ids::InstanceId;
use messages::limits::{HELLO_FRAME_MAX, PRIVILEGED_FRAME_MAX};
use messages::privileged::{PrivilegedOperation, PrivilegedReply, PrivilegedRequest, PrivilegedResponse, TapNumber};
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};

fn remove(number: u16) -> Perform {
    Perform(PrivilegedOperation::RemoveTap { instance: InstanceId([1; 3]), tap: TapNumber(number) })
}

async fn perform(client: &Addr<PrivilegedClient>, message: Perform) -> Result<PrivilegedReply, WireError> {
    client.send(message).await.unwrap()
}

/// Greets and answers `answers` requests with `Done`; then reads `more` and hangs up without an answer.
async fn serve(stream: UnixStream, answers: usize, more: usize) -> Vec<PrivilegedOperation> {
    let (read, mut write) = stream.into_split();
    let mut reader = FrameReader::new(read, PRIVILEGED_FRAME_MAX);
    send_hello(&mut write).await.unwrap();
    reader.hello().await.unwrap();
    let mut seen = Vec::new();
    for index in 0..answers + more {
        let Some(PrivilegedRequest { number, operation }) = reader.message().await.unwrap() else { break };
        seen.push(operation);
        if index < answers {
            let response = PrivilegedResponse { number, result: Ok(PrivilegedReply::Done) };
            write_frame(&mut write, &response, PRIVILEGED_FRAME_MAX).await.unwrap();
        }
    }
    seen
}

fn run(test: impl AsyncFnOnce(&Path)) {
    actix::System::new().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        test(&directory.path().join("s")).await;
    });
}

#[test]
fn an_absent_helper_is_a_hint_at_once() {
    run(async |path| {
        let client = PrivilegedClient::new(path.to_owned()).start();
        let error = perform(&client, remove(1)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Host);
        assert_eq!(error.hints, ["run `sudo banger daemon root start --owner USER`, or use `--net none`"]);
        // It is found as soon as it is there.
        let listener = UnixListener::bind(path).unwrap();
        let helper = tokio::spawn(async move { serve(listener.accept().await.unwrap().0, 1, 0).await });
        assert_eq!(perform(&client, remove(1)).await, Ok(PrivilegedReply::Done));
        assert_eq!(helper.await.unwrap(), [remove(1).0]);
    });
}

#[test]
fn what_a_dying_helper_left_unanswered_is_sent_to_the_next() {
    run(async |path| {
        let listener = UnixListener::bind(path).unwrap();
        let path = path.to_owned();
        let client = PrivilegedClient::new(path.clone()).start();
        let helper = tokio::spawn(async move {
            let first = serve(listener.accept().await.unwrap().0, 1, 3).await;
            // As a killed helper: the socket's file stays, and nobody listens.
            drop(listener);
            std::fs::remove_file(&path).unwrap();
            let listener = UnixListener::bind(&path).unwrap();
            let second = serve(listener.accept().await.unwrap().0, 4, 0).await;
            (first.len(), second)
        });
        let asked = (0..5).map(|number| perform(&client, remove(number)));
        let answers = futures::future::join_all(asked).await;
        assert!(answers.iter().all(|answer| *answer == Ok(PrivilegedReply::Done)), "{answers:?}");
        let (first, mut second) = helper.await.unwrap();
        assert_eq!(first, 4);
        second.sort_by_key(|operation| format!("{operation:?}"));
        assert_eq!(second, [1, 2, 3, 4].map(|number| remove(number).0), "each once, and those of the first again");
    });
}

#[test]
fn an_operation_that_kills_every_helper_is_given_up() {
    run(async |path| {
        let listener = UnixListener::bind(path).unwrap();
        let client = PrivilegedClient::new(path.to_owned()).start();
        let helper = tokio::spawn(async move {
            let mut times = 0;
            while let Ok((stream, _)) = listener.accept().await {
                times += serve(stream, 0, 1).await.len();
                if times == 4 {
                    // The client connects once more before it gives up.
                    serve(listener.accept().await.unwrap().0, 1, 0).await;
                    break;
                }
            }
            times
        });
        let error = perform(&client, remove(1)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Lost);
        assert_eq!(perform(&client, remove(2)).await, Ok(PrivilegedReply::Done));
        assert_eq!(helper.await.unwrap(), 4);
    });
}

#[test]
fn a_helper_of_another_version_is_named() {
    run(async |path| {
        let listener = UnixListener::bind(path).unwrap();
        let client = PrivilegedClient::new(path.to_owned()).start();
        let helper = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let hello = Hello { magic: MAGIC, generation: u32::MAX, build: "99.9".to_owned() };
            write_frame(&mut stream, &hello, HELLO_FRAME_MAX).await.unwrap();
            // Until the client has seen enough.
            FrameReader::new(stream, PRIVILEGED_FRAME_MAX).hello().await.ok();
        });
        let error = perform(&client, remove(1)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol);
        assert!(error.to_string().contains("99.9"), "{error}");
        assert!(error.hints[0].contains("daemon root stop"));
        helper.await.unwrap();
    });
}

#[test]
fn a_supervised_client_serves_on_after_a_restart() {
    run(async |path| {
        let listener = UnixListener::bind(path).unwrap();
        let path = path.to_owned();
        let client = Supervisor::start(move |_| PrivilegedClient::new(path));
        let helper = tokio::spawn(async move {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, 9, 0));
            }
        });
        assert_eq!(perform(&client, remove(1)).await, Ok(PrivilegedReply::Done));
        client.send(Crash).await.unwrap().unwrap_err();
        assert_eq!(perform(&client, remove(2)).await, Ok(PrivilegedReply::Done));
        helper.await.unwrap();
    });
}

/// Panics in the client's handler.
#[derive(actix::Message)]
#[rtype(result = "Result<(), WireError>")]
struct Crash;

impl actix::Handler<Crash> for PrivilegedClient {
    type Result = Result<(), WireError>;
    fn handle(&mut self, _: Crash, ctx: &mut actix::Context<Self>) -> Self::Result {
        crate::supervise::guard(ctx, |_| panic!("as told"))
    }
}
