//! Images that users make: of VMs, of Containerfiles and scripts, of files of their own.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use integration::TestEnvironment;
use integration::machines::Machine;
use serde_json::json;
use std::fs;
use std::process::Command;

fn sh(vm: &str, script: &str) -> Vec<String> {
    ["vm", "exec", vm, "--", "sh", "-c", script].map(str::to_owned).to_vec()
}

/// A file in an image, as debugfs reads it.
fn cat(environment: &TestEnvironment, image: &str, path: &str) -> String {
    let rootfs = environment.path("state/images").join(image).join("rootfs.ext4");
    let output = Command::new("debugfs")
        .args(["-R", &format!("cat {path}")])
        .arg(rootfs)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn images(environment: &TestEnvironment) -> Vec<String> {
    let list = environment.line("image list --json").json();
    list.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_vm_is_committed_while_it_runs_and_while_it_is_stopped() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name v --net none --wait agent").success();
    environment.banger(sh("v", "mkdir -p srv; echo first > srv/data; ln srv/data srv/again")).success();
    assert_eq!(environment.line("image commit v --name one").success(), "one\n");
    assert_eq!(environment.vm("v", "state"), "running");
    assert_eq!(cat(&environment, "one", "/srv/data"), "first\n");
    let shown = environment.line("image show one --json").json();
    assert_eq!(
        (&shown["source"], &shown["parent"], &shown["kernel"]),
        (&json!("vm:v"), &json!("sha256:00"), &json!("test"))
    );

    environment.line("image commit v --name one").failure(202);
    environment.banger(sh("v", "echo second > srv/data")).success();
    environment.line("vm stop v").success();
    environment.line("image commit v --name two").success();
    assert_eq!(environment.vm("v", "state"), "stopped", "as it was before");
    assert_eq!(cat(&environment, "two", "/srv/again"), "second\n");
    assert_eq!(cat(&environment, "one", "/srv/data"), "first\n");

    environment.line("vm run --rm --net none --wait agent --image two -- true").success();
    environment.line("image commit nobody --name three").failure(201);
    environment.banger(["image", "commit", "v", "--name", "../x"]).failure(2);
    assert_eq!(images(&environment), ["one", "test", "two"]);
    environment.finish();
}

#[test]
fn a_containerfile_is_built_in_a_vm_that_is_gone_afterwards() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    let context = environment.path("context");
    fs::create_dir_all(context.join("tree/deep")).unwrap();
    fs::write(context.join("one.txt"), "one").unwrap();
    fs::write(context.join("tree/deep/two.txt"), "two").unwrap();
    let file = context.join("Containerfile");
    fs::write(
        &file,
        "FROM test\nENV WHO=world\nENV WHO=nobody PLACE=\"the $WHO\"\nWORKDIR /srv/app\nCOPY one.txt renamed\nCOPY tree ./tree/\n\
         RUN echo \"hello $PLACE\" > greeting && \\\n    cat renamed >> greeting\nUSER root\nENTRYPOINT [\"/bin/cat\"]\nCMD [\"greeting\"]\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    // The process machine has no root of its own: what is absolute in the guest lies in its directory there.
    let output = environment.banger(["image", "build", "--name", "built", "--net", "none", "--file", file]);
    assert!(output.stderr.contains("step 6 of 9: RUN echo"), "{output:?}");
    assert_eq!(output.success(), "built\n");
    assert_eq!(cat(&environment, "built", "/srv/app/greeting"), "hello the world\none");
    assert_eq!(cat(&environment, "built", "/srv/app/tree/deep/two.txt"), "two");
    let shown = environment.line("image show built --json").json();
    let config = json!({
        "env": ["WHO=nobody", "PLACE=the world"], "entrypoint": ["/bin/cat"], "cmd": ["greeting"],
        "workdir": "/srv/app", "user": "root"
    });
    assert_eq!((&shown["config"], &shown["source"]), (&config, &json!("build:test")));
    assert_eq!(environment.vms(), Vec::<String>::new());
    environment.finish();
}

#[test]
fn a_build_that_fails_says_where_and_leaves_nothing() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    let build = |text: &str| {
        let file = environment.path("Containerfile");
        fs::write(&file, text).unwrap();
        environment.banger(["image", "build", "--name", "never", "--net", "none", "--file", file.to_str().unwrap()])
    };
    let failed = build("FROM test\nRUN true\nRUN echo on its way; exit 3\n").failure(206);
    assert!(failed.contains("on its way") && failed.contains("line 3") && failed.contains("exited with 3"), "{failed}");
    let missing = build("FROM test\nCOPY nothing /x\n").failure(2);
    assert!(missing.contains("line 2") && missing.contains("matches nothing"), "{missing}");
    assert!(build("FROM test\nVOLUME /x\n").failure(2).contains("line 2: VOLUME is not supported"));
    build("FROM nowhere\n").failure(201);
    let taken = environment.banger(["image", "build", "--name", "test", "--from", "test", "--script", "/dev/null"]);
    taken.failure(202);
    let script = environment.path("script");
    fs::write(&script, "echo made > made\nfalse\necho never > made\n").unwrap();
    let script = script.to_str().unwrap();
    let arguments = ["image", "build", "--name", "never", "--net", "none", "--from", "test", "--script", script];
    // What lies beside a script is no context.
    fs::write(environment.path(".dockerignore"), "*").unwrap();
    let failed = environment.banger(arguments).failure(206);
    assert!(failed.contains("step 2 of 2: run script"), "{failed}");
    assert_eq!(images(&environment), ["test"]);
    assert_eq!(environment.vms(), Vec::<String>::new());
    environment.finish();
}

#[test]
fn a_file_is_registered_promoted_and_deleted() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    let mine = environment.path("mine.ext4");
    fs::File::create(&mine).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(&mine)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status();
    assert!(made.unwrap().success());
    let path = mine.to_str().unwrap();
    environment.banger(["image", "register", "--name", "mine", "--rootfs", path]).success();
    assert_eq!(environment.line("image show mine --json").json()["external"], json!("$ROOT/mine.ext4"));
    environment.line("vm create --name v --net none --image mine --wait agent").success();
    environment.line("image delete mine").failure(202);
    environment.line("image promote mine").success();
    environment.line("image promote mine").failure(202);
    assert_eq!(environment.line("image show mine --json").json()["external"], json!(null));
    fs::remove_file(&mine).unwrap();
    environment.line("vm restart v --wait agent").success();
    let forced = environment.line("image delete --force mine");
    assert!(forced.stderr.contains("v cannot be started again"), "{forced:?}");
    forced.success();
    environment.line("vm stop v").success();
    environment.line("vm start v").failure(201);
    let text = environment.path("text");
    fs::write(&text, "no file system").unwrap();
    environment.banger(["image", "register", "--name", "text", "--rootfs", text.to_str().unwrap()]).failure(2);
    environment.banger(["image", "register", "--name", "gone", "--rootfs", "/no/such/file"]).failure(2);
    assert_eq!(images(&environment), ["test"]);
    environment.finish();
}
