//! 256 MiB through the stdin of an exec, against the same bytes raw through a port of the same kind, without multiplexer. Beside
//! it, what is left of those raw bytes' speed when they go through a pipe to another process, as a command's stdin does.

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
        straight.push(rate(runtime.block_on(raw(&mut bare, ""))?));
        piped.push(rate(runtime.block_on(raw(&mut bare, "| cat"))?));
    }
    let figure = |name: &str, measured: &[f64], baseline: &[f64], goal: Goal| Figure {
        name: name.to_owned(),
        measured: median(measured),
        baseline: median(baseline),
        goal,
        runs,
        remark: remark.clone(),
    };
    Ok(vec![
        figure("256 MiB through exec's stdin against a raw port (MB/s)", &ours, &straight, Goal::AtLeast(0.7)),
        figure("256 MiB through a raw port and a pipe against a raw port (MB/s)", &piped, &straight, Goal::None),
    ])
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

/// Raw bytes, to a reader that drops them or hands them to the rest of a pipeline.
async fn raw(bare: &mut super::bare::Bare, rest: &str) -> Result<Duration, Stop> {
    // The port's device is named after its place, its name stands beside it.
    let script = format!(
        "for d in /sys/class/virtio-ports/*; do \
           [ \"$(cat $d/name)\" = bench.0 ] && {{ head -c {SIZE} /dev/${{d##*/}} {rest} >/dev/null; exit; }}; \
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
