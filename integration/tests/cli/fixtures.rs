//! Values that many tests need.

use ::fixtures::{vm_size, vm_view};
use integration::fakes::{FakeAgent, FakeDaemon, Step};
use integration::{CommandOutput, TestEnvironment};
use messages::ids::{OperationId, VmId};
use messages::image::{ImageConfig, ImageView};
use messages::reply::{Reply, VmChange, VmOutcome};
use messages::request::RequestBody;
use messages::vm::{NetAllow, SshPublicKey, VmState, VmView};

pub(crate) const VM: VmId = VmId([0x1a, 2, 3, 4, 5, 6, 7, 8]);

pub(crate) fn view(name: &str, state: VmState) -> VmView {
    VmView {
        net_allow: vec![NetAllow::HostTcp(8080)],
        address: Some("172.16.0.2".parse().unwrap()),
        address6: Some("fd12:3456:789a::ac10:2".parse().unwrap()),
        labels: vec![("team".into(), "blue".into())],
        ssh_host_key: Some(SshPublicKey([7; 32])),
        ..vm_view(VM, name, state)
    }
}

pub(crate) fn image(name: &str) -> ImageView {
    ImageView {
        name: name.parse().unwrap(),
        digest: "sha256:aa".into(),
        size_bytes: 1,
        disk_bytes: 1,
        kernel: "k".parse().unwrap(),
        source: "catalog".into(),
        created_at_ms: 1,
        used_by: vec![],
        config: ImageConfig::default(),
    }
}

pub(crate) fn attached() -> Reply {
    Reply::Attached { vm: VM, name: "brave-otter".parse().unwrap(), operation: OperationId([9; 8]), size: vm_size() }
}

pub(crate) fn deleted() -> Reply {
    let change = VmChange { id: VM, name: "brave-otter".parse().unwrap(), changed: true, how: None };
    Reply::Outcomes(vec![VmOutcome { asked: VM.to_string(), result: Ok(change) }])
}

/// A daemon whose every command is played by `play`; it forgets ephemeral VMs when told to.
pub(crate) fn daemon(
    environment: &TestEnvironment,
    play: impl Fn(FakeAgent) + Clone + Send + Sync + 'static,
) -> FakeDaemon {
    FakeDaemon::start(&environment.socket(), move |request| match &request.body {
        RequestBody::RunVm { .. } | RequestBody::ExecVm { .. } => {
            vec![Step::Hand(attached(), FakeAgent::play(play.clone()).0)]
        }
        RequestBody::DeleteVms { .. } => vec![Step::Reply(deleted())],
        RequestBody::ShowVm { .. } => vec![Step::Reply(Reply::Vm(view("brave-otter", VmState::Failed)))],
        other => panic!("not expected: {other:?}"),
    })
}

/// `vm exec` of a command that `play` plays.
pub(crate) fn exec(play: impl Fn(FakeAgent) + Clone + Send + Sync + 'static) -> CommandOutput {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, play);
    environment.banger(["vm", "exec", "brave-otter", "--", "true"])
}
