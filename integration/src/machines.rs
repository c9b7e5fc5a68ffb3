//! VMs without a guest kernel: the real daemon and the real `banger-emu`, with the agent as a host process or with nothing at
//! all behind the API, and an image and a kernel that only have to be there.

use crate::environment::TestEnvironment;
use crate::wait::until;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// What `banger-emu` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The agent as a host process.
    Process,
    /// Nothing: the API answers at once.
    Scripted,
}

impl TestEnvironment {
    /// An instance that can make VMs of this kind, all of whose VMs have no network unless they ask for it.
    ///
    /// # Panics
    /// Where the files cannot be written.
    #[must_use]
    pub fn with_machine(machine: Machine) -> Self {
        let environment = Self::new();
        // The daemon looks for its helpers in the directory that these are put into.
        environment.programs(&["banger", "bangerd", "banger-emu", "banger-agent"]);
        let flags = match machine {
            Machine::Process => {
                format!("--machine process --agent {}", environment.program("banger-agent").display())
            }
            Machine::Scripted => "--machine scripted".to_owned(),
        };
        let emulator = environment.program("banger-emu");
        let vmm = environment.path("vmm");
        fs::write(&vmm, format!("#!/bin/sh\nexec {} {flags} \"$@\"\n", emulator.display())).unwrap();
        fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
        environment.install_artifacts();
        environment.config(&format!(
            "vmm = \"firecracker\"\nfirecracker_bin = \"{}\"\ndefault_image_name = \"test\"\ndefault_kernel = \"test\"\n\
             [vm_defaults]\nvcpu = 1\nmemory_mib = 128\ndisk_size = \"64M\"\n",
            vmm.display()
        ));
        environment
    }

    fn install_artifacts(&self) {
        let put = |dir: &str, manifest: &Value, files: &[&str]| {
            let dir = self.path("state").join(dir).join("test");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
            for file in files {
                fs::write(dir.join(file), b"only has to be there").unwrap();
            }
        };
        let config = json!({ "env": [], "entrypoint": [], "cmd": [], "workdir": null, "user": null });
        let image = json!({
            "name": "test", "digest": "sha256:00", "size_bytes": 20, "uuid": "11111111-2222-4333-8444-555555555555",
            "kernel": "test", "source": "test", "created_at_ms": 1, "config": config
        });
        let kernel = json!({
            "name": "test", "version": "6.12.0", "digest": "sha256:00", "source": "test", "created_at_ms": 1,
            "modules_uuid": "11111111-2222-4333-8444-666666666666", "command_line": "console=ttyS0"
        });
        put("images", &image, &["rootfs.ext4"]);
        put("kernels", &kernel, &["vmlinux", "modules.cpio", "modules.ext4"]);
    }

    /// Runs `banger` with the words of a line.
    pub fn line(&self, line: &str) -> crate::CommandOutput {
        self.banger(line.split_whitespace())
    }

    /// The only daemon's process id.
    ///
    /// # Panics
    /// Where none runs.
    #[must_use]
    pub fn daemon_pid(&self) -> i32 {
        let status = self.line("daemon status --json").json();
        i32::try_from(status["pid"].as_i64().unwrap()).unwrap()
    }

    /// One field of one VM.
    ///
    /// # Panics
    /// Where there is no such VM.
    #[must_use]
    pub fn vm(&self, vm: &str, field: &str) -> Value {
        self.banger(["vm", "show", vm, "--json"]).json()[field].clone()
    }

    /// Names of all VMs.
    ///
    /// # Panics
    /// Where the list is none.
    #[must_use]
    pub fn vms(&self) -> Vec<String> {
        let list = self.line("vm list --json").json();
        list.as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Deletes every VM and stops the daemon; then nothing of this instance may run, and no VM's files may be left.
    ///
    /// # Panics
    /// Where something is.
    pub fn finish(self) {
        for vm in self.vms() {
            self.banger(["vm", "delete", "--force", &vm]).success();
        }
        self.line("daemon stop").success();
        until("the end of every process", || self.processes().is_empty().then_some(()));
        let vms = fs::read_dir(self.path("state/vms")).map(|dir| dir.count()).unwrap_or(0);
        assert_eq!(vms, 0, "directories of deleted VMs are left");
        assert!(!self.socket().exists(), "the daemon's socket is left");
    }
}
