//! What goes through a command's stdin, stdout and stderr.

use crate::case::{Case, Outcome, check};
use crate::command::Input;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::time::Duration;

pub(super) fn apart(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &[])?;
    // Both streams at once and more than any buffer holds: a reader that waits for one alone would hang here.
    let script =
        "for i in $(seq 2000); do echo out-$i; echo err-$i >&2; done; cat; head -c 3000000 /dev/zero >&2; exit 5";
    let mut program = case.world.banger(&["vm", "exec", &vm, "--", "sh", "-c", script]);
    program.input = Input::Bytes(b"given on stdin\n".to_vec());
    let done = case.run(program)?;
    check(done.code() == 5, || format!("exited with {}", done.code()))?;
    let expected = |stream: &str| (1..=2000).map(|i| format!("{stream}-{i}\n")).collect::<String>();
    check(done.out() == expected("out") + "given on stdin\n", || "stdout is not what was written".to_owned())?;
    let zeros = done.stderr.iter().filter(|byte| **byte == 0).count();
    check(zeros == 3_000_000 && done.err().starts_with(&expected("err")), || {
        format!("stderr is not what was written: {} bytes, {zeros} of them zero", done.stderr.len())
    })?;
    // Without stdin, a reader gets its end at once.
    let done = case.ok(&["vm", "exec", &vm, "--", "cat"])?;
    check(done.stdout.is_empty(), || "cat of nothing printed something".to_owned())?;
    let done = case.ok(&[
        "vm",
        "exec",
        &vm,
        "--env",
        "A=x y",
        "--workdir",
        "/usr",
        "--user",
        "nobody",
        "--",
        "sh",
        "-c",
        "printf '%s|%s|%s' \"$A\" \"$PWD\" \"$(id -un)\"",
    ])?;
    check(done.out() == "x y|/usr|nobody", || format!("environment, directory and user are `{}`", done.out()))
}

/// 1 GiB that does not repeat within any buffer, made as it is read.
struct Bytes {
    left: u64,
    state: u64,
    sent: std::sync::mpsc::Sender<String>,
    hash: Sha256,
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len()) / 8 * 8;
        for word in buffer[..length].chunks_exact_mut(8) {
            // xorshift64 (Marsaglia, 2003).
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        self.hash.update(&buffer[..length]);
        self.left -= length as u64;
        if length == 0 {
            drop(self.sent.send(hex::encode(self.hash.clone().finalize())));
        }
        Ok(length)
    }
}

pub(super) fn stdin_1g(case: &Case<'_>) -> Outcome {
    const SIZE: u64 = 1 << 30;
    let vm = case.vm();
    case.create(&vm, &[])?;
    let (sent, hash) = std::sync::mpsc::channel();
    let mut program = case.world.banger(&["vm", "exec", &vm, "--", "cat"]);
    program.input =
        Input::Reader(Box::new(Bytes { left: SIZE, state: 0x9e37_79b9_7f4a_7c15, sent, hash: Sha256::new() }));
    program.deadline = Duration::from_secs(600);
    let done = case.run(program)?;
    check(done.code() == 0, || format!("exited with {}", done.code()))?;
    check(done.stdout_total == SIZE, || format!("{} of {SIZE} bytes came back", done.stdout_total))?;
    let sent = hash.recv()?;
    check(sent == done.stdout_sha256, || format!("sent {sent}, got {}", done.stdout_sha256))?;
    case.note(format!("{:.0} MB/s", (SIZE as f64) / 1e6 / done.took.as_secs_f64()));
    Ok(())
}
