//! What guests reach, and what they do not.

use crate::case::{Case, Outcome, SETTLE, Stop, check};
use messages::error::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long a connection to a package mirror may take.
const CONNECT: Duration = Duration::from_secs(20);

pub(super) fn nat(case: &Case<'_>) -> Outcome {
    let (vm, peer) = (case.vm(), case.vm_named("peer"));
    case.create(&vm, &["--wait", "system"])?;
    // The mirror that the image was built from is one that this machine can reach.
    let sources = "cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null; true";
    let mirror = mirror_of(&case.guest(&vm, sources)?).ok_or(Stop::Failed("the guest has no mirror".to_owned()))?;
    let (host, port) = mirror;
    let reachable = (host.as_str(), port)
        .to_socket_addrs()
        .map_err(|error| error.to_string())
        .and_then(|mut found| found.next().ok_or("no address".to_owned()))
        .and_then(|address| TcpStream::connect_timeout(&address, CONNECT).map_err(|error| error.to_string()));
    if let Err(error) = reachable {
        return Err(Stop::Skipped(format!("{host} cannot be reached from here: {error}")));
    }
    // By name, over TCP: resolver, route and masquerade all have to work.
    let script = format!("timeout 60 bash -c 'exec 3<>/dev/tcp/{host}/{port} && echo connected'");
    let said = case.guest(&vm, &script)?;
    check(said == "connected", || format!("the guest says `{said}`"))?;
    // Guests are strangers to each other, and to the services of the host.
    case.create(&peer, &[])?;
    let address = case.show(&peer)?["address"].as_str().unwrap_or_default().to_owned();
    let own = case.show(&vm)?["address"].as_str().unwrap_or_default().to_owned();
    check(!address.is_empty() && address != own, || format!("addresses `{own}` and `{address}`"))?;
    let probe = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/22' 2>&1; echo $?");
    let said = case.guest(&vm, &probe)?;
    check(said.ends_with("124") || said.contains("unreachable") || said.contains("No route"), || {
        format!("{own} reaches {address}, or is answered by it: {said}")
    })
}

fn mirror_of(sources: &str) -> Option<(String, u16)> {
    let url = sources.split_whitespace().find_map(|word| word.strip_prefix("http://"))?;
    let authority = url.split('/').next()?;
    let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
    Some((host.to_owned(), port.parse().ok()?))
}

pub(super) fn no_helper(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.world.stop_helper()?;
    let result = without_helper(case, &vm);
    // The others need it, whatever happened here.
    case.world.start_helper()?;
    result?;
    case.ok(&["vm", "delete", "--force", &vm])?;
    // And with it back, the daemon needs no restart.
    let other = case.vm_named("nat");
    case.create(&other, &[])?;
    let address = case.show(&other)?["address"].clone();
    check(address.is_string(), || format!("the address is {address}"))
}

fn without_helper(case: &Case<'_>, vm: &str) -> Outcome {
    let arguments = ["vm", "run", "--net", "none", "--wait", "agent", "--name", vm, "--"];
    let done = case.ok(&[&arguments[..], &["ls", "/sys/class/net"]].concat())?;
    check(done.out().trim() == "lo", || format!("the guest has `{}`", done.out().trim()))?;
    // A pool of taps made before may serve this once or twice: what counts is that it works or says why it cannot.
    for attempt in 0..8 {
        let name = case.vm_named(&format!("n{attempt}"));
        let done = case.banger(&["vm", "create", "--name", &name])?;
        if done.code() == 0 {
            continue;
        }
        check(done.code() == i32::from(ErrorKind::Host.exit_code()), || format!("exited with {}", done.code()))?;
        return check(done.err().contains("daemon root start"), || format!("does not say what to do: {}", done.err()));
    }
    case.wait(SETTLE, "a refusal", || Ok(Err("eight VMs got a tap without a helper".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_found_in_both_formats() {
        let one = mirror_of("deb http://mirror.example/debian bookworm main");
        assert_eq!(one, Some(("mirror.example".to_owned(), 80)));
        let other = mirror_of("Types: deb\nURIs: http://mirror.example:3142/debian\nSuites: bookworm");
        assert_eq!(other, Some(("mirror.example".to_owned(), 3142)));
        assert_eq!(mirror_of("deb https://x/ y z"), None);
    }
}
