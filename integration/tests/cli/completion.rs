//! Completion as bash has it: the script that is printed, loaded, and asked as if Tab were pressed.

use crate::fixtures::{image, view};
use integration::TestEnvironment;
use integration::fakes::{FakeDaemon, Step};
use messages::image::CatalogEntry;
use messages::reply::Reply;
use messages::request::RequestBody;
use messages::vm::VmState;

/// What bash would offer for the last word of `line`, which may be empty.
fn complete(environment: &TestEnvironment, line: &str) -> Vec<String> {
    let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source <(banger completion bash)\n\
         COMP_WORDS=({words}) COMP_CWORD={last} COMP_TYPE=9\n\
         _clap_complete_banger banger {current} x\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words = words.join(" "),
        last = words.len() - 1,
        current = words.last().unwrap(),
    );
    let output = environment.bash(&script);
    assert_eq!(output.stderr, "", "a prompt is no place to complain");
    output.success().lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn entry(name: &str) -> CatalogEntry {
    CatalogEntry {
        name: name.into(),
        kind: "debian".into(),
        description: "small".into(),
        present: true,
        origin: "built-in".into(),
    }
}

#[test]
fn names_are_those_that_the_daemon_has_now() {
    let environment = TestEnvironment::new();
    let daemon = FakeDaemon::start(&environment.socket(), |request| {
        let reply = match &request.body {
            RequestBody::ListVms => {
                Reply::Vms(vec![view("web", VmState::Running).into(), view("worker", VmState::Stopped).into()])
            }
            RequestBody::ListImages => Reply::Images(vec![image("debian-own"), image("debian-bookworm")]),
            RequestBody::ImageCatalog => Reply::Catalog(vec![entry("debian-bookworm"), entry("debian-trixie")]),
            other => panic!("{other:?}"),
        };
        vec![Step::Reply(reply)]
    });
    std::fs::write(environment.path("home/web-page.html"), "").unwrap();
    assert_eq!(complete(&environment, "banger vm stop w"), ["web", "worker"], "and no file");
    assert_eq!(complete(&environment, "banger vm stop web wor"), ["worker"]);
    for command in ["vm exec we", "vm ssh we", "vm show we", "vm logs --since 5m we", "vm stats we", "vm rename we"] {
        assert_eq!(complete(&environment, &format!("banger {command}")), ["web"], "{command}");
    }
    assert_eq!(complete(&environment, "banger vm stop nob"), Vec::<String>::new());
    let images = ["debian-bookworm", "debian-own", "debian-trixie"];
    assert_eq!(complete(&environment, "banger vm create --image deb"), images);
    assert_eq!(complete(&environment, "banger image delete deb"), ["debian-bookworm", "debian-own"]);
    assert_eq!(complete(&environment, "banger image pull deb"), ["debian-bookworm", "debian-trixie"]);
    let asked = daemon.requests().len();
    // What needs no daemon asks none.
    assert_eq!(complete(&environment, "banger vm st"), ["start", "stop", "stats"]);
    assert_eq!(complete(&environment, "banger vm create --wait s"), ["system", "ssh"]);
    assert_eq!(daemon.requests().len(), asked);
}

#[test]
fn without_a_daemon_there_are_no_names_and_none_is_started() {
    let environment = TestEnvironment::new();
    std::fs::write(environment.path("home/web-page.html"), "").unwrap();
    assert_eq!(complete(&environment, "banger vm stop w"), Vec::<String>::new());
    assert_eq!(complete(&environment, "banger image show w"), Vec::<String>::new());
    assert_eq!(complete(&environment, "banger vm kil"), ["kill"]);
    let left: Vec<_> = std::fs::read_dir(environment.path("state")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(environment.processes(), Vec::<i32>::new());
}

/// A daemon that hangs, or is of another version, does not hang the prompt.
#[test]
fn a_daemon_that_does_not_answer_is_none() {
    let environment = TestEnvironment::new();
    let _daemon = FakeDaemon::start(&environment.socket(), |_| vec![Step::AwaitHangup]);
    let began = std::time::Instant::now();
    assert_eq!(complete(&environment, "banger vm stop w"), Vec::<String>::new());
    assert!(began.elapsed() < integration::wait::DEADLINE / 2);
}
