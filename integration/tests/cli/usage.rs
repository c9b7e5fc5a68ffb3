//! What cannot be right is refused before anything is sent or started: one sentence, exit code 2, nothing left behind.

use integration::TestEnvironment;

#[test]
fn impossible_requests_are_refused_in_a_sentence() {
    let environment = TestEnvironment::new();
    for (arguments, said) in [
        ("vm run --vcpu 0", "a VM needs at least 1 vCPU, not 0"),
        ("vm run --vcpu 33", "a VM can have 32 vCPUs at most, not 33"),
        ("vm run --memory 1M", "a VM needs at least 128 MiB of memory, not 1M"),
        ("vm run --memory 512", "a bare number is bytes: `512M`?"),
        ("vm run --disk-size 3", "a disk needs at least 64 MiB, not 3"),
        ("vm run --disk-size 1e9", "`1e9` is not a size"),
        ("vm run --name Web", "`Web` is not a VM name"),
        ("vm run --label x", "`x` is not of the form K=V"),
        ("vm run --net bridge", "`bridge` is not a network"),
        ("vm run ./repo", "`banger vm run` takes no path yet, and was given `./repo`"),
        ("vm run --rm --detach", "`--rm` with `--detach` needs a command"),
        ("vm exec web", "required arguments were not provided"),
        ("vm stop", "required arguments were not provided"),
        ("vm stop web --timeout soon", "`soon` is not a time"),
        ("vm logs web --since yesterday", "`yesterday` is not a time: write `90s`"),
        ("vm logs web --since 9999-01-01T00:00:00Z", "has not come yet"),
        ("vm exec web --detach -i -- true", "cannot be used with"),
        ("vm show ../etc", "`../etc` is not a VM name or id prefix"),
        ("vm list --filter size=1", "`size` cannot be filtered by"),
        ("vm fly", "unrecognized subcommand 'fly'"),
        ("daemon start --owner nobody", "`--owner` is for root"),
    ] {
        let stderr = environment.banger(arguments.split(' ')).failure(2);
        assert!(stderr.contains(said), "{arguments}: {stderr}");
    }
    let left: Vec<_> = std::fs::read_dir(environment.path("state")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn usage_errors_are_json_where_that_was_asked_for() {
    let environment = TestEnvironment::new();
    let stderr = environment.banger(["vm", "run", "--json", "--vcpu", "0"]).failure(2);
    let value: serde_json::Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(value["error"]["kind"], "usage");
    // Behind `--` it is the command's.
    let stderr = environment.banger(["vm", "run", "--vcpu", "0", "--", "x", "--json"]).failure(2);
    assert!(stderr.starts_with("error: "), "{stderr}");
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_its_length() {
    let environment = TestEnvironment::new();
    let long = environment.path(&"x".repeat(100));
    let output = environment.command("banger").args(["vm", "list"]).env("BANGER_RUNTIME_DIR", &long).output().unwrap();
    let stderr = environment.output(output).failure(2);
    assert!(stderr.contains("the kernel takes 107: choose a shorter BANGER_RUNTIME_DIR"), "{stderr}");
}

#[test]
fn what_needs_no_daemon_starts_none() {
    let environment = TestEnvironment::new();
    assert!(environment.banger(["version"]).success().starts_with("banger "));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(environment.banger(["completion", shell]).success().contains("banger"));
    }
    let output = environment.banger(["daemon", "status"]);
    assert_eq!((output.code, output.stdout.as_str()), (209, "not running\n"));
    assert_eq!(environment.banger(["daemon", "stop"]).success(), "");
    assert_eq!(environment.banger(["daemon", "logs"]).success(), "");
    let value = environment.banger(["daemon", "root", "status", "--json"]);
    assert_eq!(value.code, 209);
    assert_eq!(environment.processes(), Vec::<i32>::new());
}

#[test]
fn the_config_is_checked_and_shown_with_its_origin() {
    let environment = TestEnvironment::new();
    assert!(environment.banger(["config", "check"]).success().contains("does not exist, which is fine"));
    environment.config("vmm = \"emulated\"\n[vm_defaults]\nvcpu = 2\n");
    let value = environment.banger(["config", "show", "--origin", "--json"]).json();
    assert_eq!(value["vmm"]["value"], "emulated");
    assert_eq!(
        value["vmm"]["origin"],
        environment.path("config.toml").to_str().unwrap().replace(environment.path("").to_str().unwrap(), "$ROOT/")
    );
    assert_eq!(value["cidr"]["origin"], "built in");
    environment.config("colour = 1\n");
    let stderr = environment.banger(["config", "check"]).failure(2);
    assert!(stderr.contains("unknown field `colour`"), "{stderr}");
}

#[test]
fn doctor_names_every_check_and_fails_when_one_does() {
    let environment = TestEnvironment::new();
    let output = environment.banger(["doctor", "--json"]);
    let checks: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["check"].as_str().unwrap()).collect();
    for name in ["host", "kvm", "qemu", "state dir", "socket", "space", "mmdebstrap", "helper", "tun", "ip_forward"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let failed = checks.iter().any(|check| check["level"] == "fail");
    assert_eq!(output.code, if failed { 205 } else { 0 });
    for check in &checks {
        assert_eq!(check["level"] == "ok", check["fix"].is_null(), "{check}");
    }
    let unwritable =
        environment.command("banger").args(["doctor"]).env("BANGER_STATE_DIR", "/proc/x").output().unwrap();
    let output = environment.output(unwritable);
    assert_eq!(output.code, 205);
    assert!(output.stdout.contains("fail  state dir"), "{output:?}");
}
