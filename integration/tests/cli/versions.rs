//! Peers of other versions, and peers that are no bangerd: one clear sentence each.

use integration::TestEnvironment;
use integration::fakes::{FakeDaemon, Step};
use messages::frame::{GENERATION, Hello, MAGIC, build_id};
use messages::reply::Reply;

fn hello(generation: u32) -> Hello {
    Hello { magic: MAGIC, generation, build: "9.9.9".to_owned() }
}

#[test]
fn another_protocol_names_both_versions_and_the_fix() {
    let environment = TestEnvironment::new();
    let _daemon = FakeDaemon::with_hello(&environment.socket(), hello(GENERATION + 1), |_| vec![]);
    let stderr = environment.banger(["vm", "list"]).failure(208);
    assert_eq!(
        stderr,
        format!(
            "error: the running bangerd is 9.9.9 (protocol {}), this is banger {} (protocol {GENERATION})\n\
             hint: `banger daemon stop`, then try again: the next command starts the matching daemon, and VMs keep running\n",
            GENERATION + 1,
            build_id(),
        )
    );
}

#[test]
fn another_build_of_the_same_protocol_is_fine() {
    let environment = TestEnvironment::new();
    let _daemon =
        FakeDaemon::with_hello(&environment.socket(), hello(GENERATION), |_| vec![Step::Reply(Reply::Vms(vec![]))]);
    assert_eq!(environment.banger(["vm", "list", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn something_else_at_the_socket_is_no_bangerd() {
    let environment = TestEnvironment::new();
    let other = Hello { magic: *b"http", generation: GENERATION, build: String::new() };
    let _daemon = FakeDaemon::with_hello(&environment.socket(), other, |_| vec![]);
    let stderr = environment.banger(["vm", "list"]).failure(208);
    assert!(stderr.starts_with("error: what listens at `$ROOT/run/bangerd.sock` is no bangerd"), "{stderr}");
}

#[test]
fn a_daemon_that_goes_away_or_babbles_is_said() {
    for (steps, code, said) in [
        (0, 211, "bangerd went away before it answered"),
        (1, 208, "the conversation with bangerd broke off"),
        (2, 208, "bangerd answered something else: `Done`"),
    ] {
        let environment = TestEnvironment::new();
        let _daemon = FakeDaemon::start(&environment.socket(), move |_| match steps {
            0 => vec![],
            1 => vec![Step::Bytes(vec![0xff; 64])],
            _ => vec![Step::Reply(Reply::Done)],
        });
        let stderr = environment.banger(["vm", "list"]).failure(code);
        assert!(stderr.contains(said), "{stderr}");
    }
}
