//! Commands: arguments, streams, terminals, signals, disconnects.

use crate::host::*;
use messages::error::ErrorKind;
use messages::guest::*;
use std::time::Duration;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn streams_are_apart_and_the_status_is_the_commands() {
    let (host, _control) = Host::booted().await;
    let finished = host.run(shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!(finished, Finished { stdout: b"out\n".into(), stderr: b"err\n".into(), status: ExitStatus::Code(7) });
    let finished = host.run(shell("kill -TERM $$")).await;
    assert_eq!(finished.status, ExitStatus::Signal(15));
}

#[tokio::test]
async fn environment_and_directory_come_from_image_and_request() {
    let (host, _control) = Host::booted().await;
    let mut spec = shell("echo $FROM_IMAGE $MINE; pwd");
    spec.env = vec![("MINE".into(), "too".into())];
    let finished = host.run(spec).await;
    let directory = host.directory.path().canonicalize().unwrap();
    assert_eq!(text(&finished.stdout), format!("yes too\n{}\n", directory.display()));
}

#[tokio::test]
async fn arguments_are_bytes() {
    let (host, _control) = Host::booted().await;
    let mut spec = exec(&["printf", "%s", "last"]);
    spec.command = ExecCommand::Argv(vec![
        ArgBytes(b"printf".into()),
        ArgBytes(b"%s".into()),
        ArgBytes(vec![0xff, b' ', b'\n', 0xfe]),
    ]);
    assert_eq!(host.run(spec).await.stdout, [0xff, b' ', b'\n', 0xfe]);
}

#[tokio::test]
async fn what_cannot_be_run_fails_clearly_and_is_told_to_the_daemon() {
    let (host, mut control) = Host::booted().await;
    let mut operation = host.open(exec(&["no-such-program"])).await;
    let Said::Failed(error) = operation.next().await else { panic!("it ran") };
    assert_eq!((error.kind, error.to_string()), (ErrorKind::NotFound, "no-such-program: command not found".into()));
    let id = operation.id;
    operation.vanish().await;
    assert_eq!(control.ended(id).await, ExitStatus::Code(127));

    std::fs::write(host.directory.path().join("script"), "#!/no/such/interpreter\n").unwrap();
    let mut operation = host.open(shell("chmod +x script")).await;
    operation.pid().await;
    operation.finish().await;
    let mut operation = host.open(exec(&["./script"])).await;
    let Said::Failed(error) = operation.next().await else { panic!("it ran") };
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(!error.hints.is_empty());
}

#[tokio::test]
async fn sixty_four_mebibytes_go_in_and_come_back() {
    let (host, _control) = Host::booted().await;
    let bytes: Vec<u8> = (0..64_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut spec = exec(&["cat"]);
    spec.stdin = true;
    let finished = host.open(spec).await.pump(&bytes).await;
    assert_eq!(finished.status, ExitStatus::Code(0));
    assert!(finished.stdout == bytes, "{} bytes came back, or others", finished.stdout.len());
}

#[tokio::test]
async fn a_command_that_reads_no_stdin_lets_the_client_go_on() {
    let (host, _control) = Host::booted().await;
    let mut spec = shell("exec <&-; sleep 0.2; echo done");
    spec.stdin = true;
    let finished = host.open(spec).await.pump(&vec![0; 8 << 20]).await;
    assert_eq!((text(&finished.stdout), finished.status), ("done\n", ExitStatus::Code(0)));
}

#[tokio::test]
async fn without_stdin_a_command_reads_the_end_at_once() {
    let (host, _control) = Host::booted().await;
    assert_eq!(host.run(exec(&["cat"])).await.status, ExitStatus::Code(0));
}

#[tokio::test]
async fn a_terminal_has_a_size_a_controlling_process_and_signals() {
    let (host, _control) = Host::booted().await;
    let mut spec = shell(
        "trap 'stty size' WINCH; trap 'echo interrupted; exit 3' INT; stty size; tty; echo $TERM; while :; do sleep 0.01; done",
    );
    spec.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let mut operation = host.open(spec).await;
    let output = operation.until("xterm").await;
    assert!(output.contains("24 80") && output.contains("/dev/pts/"), "{output}");
    operation.send(&OperationFrame::Resize(TerminalSize { rows: 50, columns: 132 })).await;
    operation.until("50 132").await;
    // Ctrl-C, through the terminal's own line discipline.
    operation.send(&OperationFrame::Stdin(&[3])).await;
    operation.until("interrupted").await;
    assert_eq!(operation.finish().await.status, ExitStatus::Code(3));
}

#[tokio::test]
async fn the_end_of_stdin_ends_a_shell_on_a_terminal() {
    let (host, _control) = Host::booted().await;
    let mut spec = exec(&["sh", "-i"]);
    spec.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let mut operation = host.open(spec).await;
    operation.send(&OperationFrame::Stdin(b"echo $((6*7))\n")).await;
    operation.until("42").await;
    operation.send(&OperationFrame::StdinEnd).await;
    assert_eq!(operation.finish().await.status, ExitStatus::Code(0));
}

#[tokio::test]
async fn the_end_of_stdin_comes_after_an_unfinished_line_too() {
    let (host, _control) = Host::booted().await;
    let mut spec = exec(&["cat"]);
    spec.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let mut operation = host.open(spec).await;
    operation.send(&OperationFrame::Stdin(b"no end of line")).await;
    operation.send(&OperationFrame::StdinEnd).await;
    let finished = operation.finish().await;
    assert_eq!(finished.status, ExitStatus::Code(0));
    assert!(text(&finished.stdout).ends_with("no end of line"), "{}", text(&finished.stdout));
}

#[tokio::test]
async fn signals_reach_the_whole_group() {
    let (host, mut control) = Host::booted().await;
    let mut operation = host.open(shell("sleep 1000 & echo $!; wait")).await;
    let leader = operation.pid().await;
    let child: u32 = operation.until("\n").await.trim().parse().unwrap();
    operation.send(&OperationFrame::Signal(15)).await;
    let id = operation.id;
    assert_eq!(operation.finish().await.status, ExitStatus::Signal(15));
    eventually("both are gone", || !lives(leader) && !lives(child)).await;
    assert_eq!(control.ended(id).await, ExitStatus::Signal(15));
}

#[tokio::test]
async fn a_background_process_does_not_hold_the_end_back() {
    let (host, _control) = Host::booted().await;
    let begun = std::time::Instant::now();
    let finished = host.run(shell("echo early; sleep 1000 & echo $!")).await;
    assert_eq!(finished.status, ExitStatus::Code(0));
    assert!(begun.elapsed() < Duration::from_secs(30));
    let child: u32 = text(&finished.stdout).lines().nth(1).unwrap().parse().unwrap();
    assert!(lives(child));
    host.run(shell(&format!("kill {child}"))).await;
}

#[tokio::test]
async fn all_output_comes_before_the_end() {
    let (host, _control) = Host::booted().await;
    let finished = host.run(shell("head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2; exit 4")).await;
    assert_eq!((finished.stdout.len(), finished.stderr.len()), (3_000_000, 2_000_000));
    assert_eq!(finished.status, ExitStatus::Code(4));
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_command_along() {
    let (host, mut control) = Host::booted().await;
    // It ignores SIGHUP, so SIGKILL has to come.
    let mut operation = host.open(shell("trap '' HUP; echo up; while :; do sleep 0.1; done")).await;
    let pid = operation.pid().await;
    operation.until("up").await;
    let id = operation.id;
    operation.vanish().await;
    assert_eq!(control.ended(id).await, ExitStatus::Signal(9));
    eventually("it is gone", || !lives(pid)).await;
}

#[tokio::test]
async fn a_client_that_detaches_leaves_its_command_running() {
    let (host, mut control) = Host::booted().await;
    let mut operation = host.open(shell("while ! [ -e go ]; do echo waiting; sleep 0.01; done; exit 5")).await;
    let pid = operation.pid().await;
    let id = operation.id;
    operation.send(&OperationFrame::Detach).await;
    eventually("it has more output than any pipe holds, or just runs on", || lives(pid)).await;
    std::fs::write(host.directory.path().join("go"), "").unwrap();
    assert_eq!(control.ended(id).await, ExitStatus::Code(5));
}

#[tokio::test]
async fn a_client_that_detaches_amid_output_and_hangs_up_leaves_its_command_running() {
    let (host, mut control) = Host::booted().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let mut operation = host.open(shell("while ! [ -e go ]; do head -c 300000 /dev/zero; done; exit 5")).await;
        operation.pid().await;
        ids.push(operation.id);
        operation.send(&OperationFrame::Detach).await;
        // Both directions at once, with output on its way.
        drop(operation);
    }
    std::fs::write(host.directory.path().join("go"), "").unwrap();
    let mut statuses = Vec::new();
    while statuses.len() < ids.len() {
        statuses.push(
            control
                .until(|frame| match frame {
                    AgentFrame::OperationEnded { status, .. } => Some(status),
                    _ => None,
                })
                .await,
        );
    }
    assert!(statuses.iter().all(|status| *status == ExitStatus::Code(5)), "{statuses:?}");
}

#[tokio::test]
async fn keep_running_survives_a_client_that_vanishes_and_can_be_signalled() {
    let (host, mut control) = Host::booted().await;
    let mut spec = exec(&["sleep", "1000"]);
    spec.on_disconnect = OnDisconnect::KeepRunning;
    let mut operation = host.open(spec).await;
    let pid = operation.pid().await;
    let id = operation.id;
    operation.vanish().await;
    let answer = control.ask(GuestQuestion::Ping).await;
    assert_eq!(answer, Ok(GuestAnswer::Done));
    assert!(lives(pid));
    assert_eq!(control.ask(GuestQuestion::SignalOperation { operation: id, signal: 9 }).await, Ok(GuestAnswer::Done));
    assert_eq!(control.ended(id).await, ExitStatus::Signal(9));
    let again = control.ask(GuestQuestion::SignalOperation { operation: id, signal: 9 }).await;
    assert_eq!(again.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn hundreds_at_once() {
    let (host, _control) = Host::booted().await;
    let mut operations = Vec::new();
    for index in 0..200_u8 {
        operations.push((index, host.open(shell(&format!("read x; echo {index}; exit {index}"))).await));
    }
    for (index, operation) in operations {
        let finished = operation.finish().await;
        assert_eq!(finished.status, ExitStatus::Code(index.into()));
        assert_eq!(text(&finished.stdout), format!("{index}\n"));
    }
}
