//! Where `<vm>.vm` is answered: by the daemon, if it runs, for guests and for this host.

use super::Check;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::run::block_on;
use actors::paths::Paths;
use messages::reply::{NamesView, Reply};
use messages::request::RequestBody;

pub(super) fn checks(paths: &Paths, output: Output) -> Vec<Check> {
    let mut found = None;
    let client = Client { paths: paths.clone(), output };
    let asked = block_on(async {
        if let Reply::Daemon(status) = client.ask_running(RequestBody::DaemonStatus).await? {
            found = Some(status.dns);
        }
        Ok(0)
    });
    match (asked, found) {
        (Ok(_), Some(dns)) => of(&dns),
        (Err(Failure::Error(error)), _) => {
            vec![Check::ok("names", format!("not known while there is no daemon: {error}"))]
        }
        (Ok(_) | Err(_), _) => vec![Check::ok("names", "not known: the daemon did not say")],
    }
}

fn of(dns: &NamesView) -> Vec<Check> {
    let answered = match (&dns.loopback, &dns.bridge) {
        (Ok(host), Ok(guests)) => {
            Check::ok("names", format!("`.vm` is answered at {host}, and for guests at {guests}"))
        }
        (Ok(host), Err(why)) => Check::warn(
            "names",
            format!("`.vm` is answered at {host}, and not for guests: {why}"),
            "guests use this host's resolvers meanwhile; see docs/dns-routing.md",
        ),
        (Err(why), _) => Check::warn(
            "names",
            format!("`.vm` is not answered on this host: {why}"),
            "`banger daemon stop`, and any command starts it again",
        ),
    };
    // Many hosts have another resolver: no warning, for nothing is broken.
    let routed = match &dns.routed {
        Ok(()) => "systemd-resolved sends `.vm` to banger".to_owned(),
        Err(why) => format!("{why} (docs/dns-routing.md has what else there is)"),
    };
    vec![answered, Check::ok("name routing", routed)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn a_taken_port_is_a_sentence_and_no_failure() {
        let taken = "port 53 of 172.16.0.1 is taken by another program".to_owned();
        let routed = Err("nothing answers on the bridge yet".to_owned());
        let checks =
            of(&NamesView { names: 0, loopback: Ok("127.0.0.1:20053".to_owned()), bridge: Err(taken), routed });
        assert_eq!(checks.iter().map(|check| check.level).collect::<Vec<_>>(), [Level::Warn, Level::Ok]);
        assert_eq!(
            checks[0].text,
            "`.vm` is answered at 127.0.0.1:20053, and not for guests: port 53 of 172.16.0.1 is taken by another program"
        );
    }
}
