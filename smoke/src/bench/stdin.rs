//! 256 MiB through the stdin of an exec, against the same bytes raw through a port of the same kind, without multiplexer: once to a
//! reader of the port itself, and once through a pipe to the same command, which is what a command's stdin is.

use super::bare::{RawPort, Template, succeed};
use super::figures::{Figure, Goal, median};
use super::repeats;
use crate::case::{Case, Stop, check, failed};
use crate::command::Input;
use std::io::Read;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const SIZE: u64 = 256 << 20;
/// How long the raw port may take: many times what it takes.
const LONGEST: Duration = Duration::from_secs(120);
/// As much as the command line tool reads at a time.
const CHUNK: usize = 128 << 10;

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let template = Template::take(case)?;
    let vm = case.vm();
    case.create(&vm, &["--net", "none"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut bare = runtime.block_on(template.boot(RawPort::Yes))?;
    let (runs, remark) = repeats(through_exec(case, &vm)?);
    let (mut ours, mut straight, mut piped) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(rate(through_exec(case, &vm)?));
        straight.push(rate(runtime.block_on(raw(&mut bare, TO_READER))?));
        piped.push(rate(runtime.block_on(raw(&mut bare, TO_PIPE))?));
    }
    let against = |what: &str, baseline: &[f64]| Figure {
        name: format!("256 MiB through exec's stdin against {what} (MB/s)"),
        measured: median(&ours),
        baseline: median(baseline),
        goal: Goal::AtLeast(0.7),
        runs,
        remark: remark.clone(),
    };
    Ok(vec![against("a raw port", &straight), against("a raw port and a pipe", &piped)])
}

fn rate(took: Duration) -> f64 {
    SIZE as f64 / 1e6 / took.as_secs_f64()
}

fn through_exec(case: &Case<'_>, vm: &str) -> Result<Duration, Stop> {
    let mut program = case.world.banger(&["vm", "exec", vm, "--", "sh", "-c", "cat > /dev/null"]);
    program.input = Input::Reader(Box::new(std::io::repeat(0x55).take(SIZE)));
    let done = case.run(program)?;
    check(done.code() == 0, || format!("exec ended with {}", done.code()))?;
    Ok(done.took)
}

/// Drops what it reads from `$port`.
const TO_READER: &str = "head -c $size $port > /dev/null";
/// Hands it to the command that the exec has, in pieces of a pipe's size.
const TO_PIPE: &str = "dd if=$port bs=64k iflag=fullblock count=$((size >> 16)) status=none | cat > /dev/null";

/// Raw bytes, to what the shell makes of them.
async fn raw(bare: &mut super::bare::Bare, consumer: &str) -> Result<Duration, Stop> {
    // The port's device is named after its place, its name stands beside it.
    let script = format!(
        "size={SIZE}; for device in /sys/class/virtio-ports/*; do \
           [ \"$(cat $device/name)\" = bench.0 ] && {{ port=/dev/${{device##*/}}; {consumer}; exit; }}; \
         done; echo no port; exit 1"
    );
    let started = Instant::now();
    let reader = bare.exec(&script).await?;
    let Some(port) = bare.raw.as_mut() else { return failed("the bare guest has no second port") };
    let feed = async {
        let chunk = vec![0x55; CHUNK];
        let mut left = SIZE;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            port.write_all(&chunk[..length]).await?;
            left -= length as u64;
        }
        Ok::<_, Stop>(())
    };
    // Side by side: a reader that gives up says so, and does not leave us writing to nobody.
    match tokio::time::timeout(LONGEST, async { tokio::try_join!(feed, succeed(reader)) }).await {
        Ok(done) => done.map(|_| started.elapsed()),
        Err(_) => failed(format!("nobody read the raw port's bytes within {} s", LONGEST.as_secs())),
    }
}
