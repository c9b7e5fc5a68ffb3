//! The table of bad input that only a daemon can judge: one sentence, a documented exit code, nothing left behind.

use integration::TestEnvironment;
use integration::machines::Machine;

#[test]
fn what_does_not_exist_is_named_with_what_is_near() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    environment.line("vm create --name website --net none").success();
    for (line, code, said) in [
        ("vm show websit", 201, "website"),
        ("vm exec websit -- true", 201, "website"),
        ("vm create --image debian-bookwrm --net none", 201, "`debian-bookworm`"),
        ("vm create --kernel debian-cloud-6.21 --net none", 201, "`debian-cloud-6.12`"),
        ("image show tset", 201, "test"),
        ("kernel show tset", 201, "test"),
        ("image delete tset", 201, "test"),
        ("vm create --name website --net none", 202, "website"),
        ("image delete test", 202, "website"),
        ("kernel delete test", 202, "test"),
    ] {
        let stderr = environment.line(line).failure(code);
        assert!(stderr.contains("error: ") && stderr.contains(said), "{line}: {stderr}");
    }
    assert_eq!(environment.vms(), ["website"]);
    environment.finish();
}

#[test]
fn what_the_host_cannot_hold_is_refused_with_the_figures() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    let cpus = std::thread::available_parallelism().unwrap().get();
    if cpus < 32 {
        let stderr = environment.line("vm create --net none --vcpu 32").failure(204);
        assert!(stderr.contains("32"), "{stderr}");
    }
    let stderr = environment.line("vm create --net none --memory 8T").failure(204);
    assert!(stderr.contains("8388608 MiB does not fit this host, which has"), "{stderr}");
    assert_eq!(environment.vms(), Vec::<String>::new());
    environment.finish();
}

#[test]
fn without_the_helper_a_network_is_refused_and_none_works() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    let stderr = environment.line("vm create --name n").failure(205);
    assert!(stderr.contains("--net none") && stderr.contains("banger daemon root start"), "{stderr}");
    assert_eq!(environment.vms(), Vec::<String>::new());
    environment.line("vm create --name n --net none").success();
    environment.finish();
}

#[test]
fn a_vmm_that_is_not_there_is_said() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    environment
        .config("vmm = \"firecracker\"\nfirecracker_bin = \"/no/such/firecracker\"\ndefault_image_name = \"test\"\n");
    let output = environment.line("vm create --net none");
    assert_eq!(output.code, 205, "{output:?}");
    assert!(output.stderr.contains("/no/such/firecracker"), "{output:?}");
    if environment.line("daemon status").code == 0 {
        environment.finish();
    }
}
