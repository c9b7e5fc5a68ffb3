//! What users type. Owns every flag, its default and its help; sends nothing and knows no daemon (what completes a name asks
//! one, in `completion`).
//!
//! A command is here once it works. `--help` of everything is a snapshot in `integration/tests`.

mod artifacts;
mod bundles;
mod daemon;
mod vm;

pub(super) use artifacts::{
    BuildImageArgs, DeleteImagesArgs, ImageCommand, KernelCommand, PullImageArgs, RegisterImageArgs,
};
pub(super) use bundles::{ExportImageArgs, ImportImageArgs, ImportKernelArgs};
pub(super) use daemon::{ConfigCommand, DaemonCommand, DaemonStartArgs, OwnerArgs, RootCommand};
pub(super) use vm::{
    CreateArgs, DeleteArgs, ExecArgs, ListArgs, LogsArgs, RunArgs, SpecArgs, SshArgs, StatsArgs, VmCommand, VmFilter,
};

use clap::{Args, Parser, Subcommand};

/// Disposable Linux machines, each a microVM with its own kernel.
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version = messages::frame::build_id(),
    disable_version_flag = true,
    disable_help_subcommand = true,
    propagate_version = false,
    infer_subcommands = false,
    max_term_width = 120,
    after_help = "Exit status: that of the command run in a VM; 2 for wrong usage; 200 and up for banger's own failures.\n\
                  Data goes to stdout, talk to stderr."
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags of every command.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct GlobalArgs {
    /// Print JSON: results on stdout, progress (one event a line) and errors on stderr.
    #[arg(long, global = true, display_order = 900)]
    pub(super) json: bool,
    /// Print no progress and no remarks.
    #[arg(short, long, global = true, display_order = 901)]
    pub(super) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make, use and delete VMs.
    #[command(subcommand)]
    Vm(VmCommand),
    /// The images that VMs are made from.
    #[command(subcommand)]
    Image(ImageCommand),
    /// The kernels that VMs boot.
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// The daemon that keeps the VMs; any command that needs it starts it.
    #[command(subcommand)]
    Daemon(DaemonCommand),
    /// Check whether this host has what banger needs, and say how to fix what is missing.
    Doctor,
    /// The configuration file and what it comes to.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the line for `~/.ssh/config` that makes `ssh NAME.vm` reach VMs, or put it there.
    SshConfig(SshConfigArgs),
    /// Print a completion script for a shell.
    #[command(after_help = COMPLETION_RECIPES)]
    Completion {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
    /// Print the version of this program and of its protocol.
    Version,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct SshConfigArgs {
    /// Put the line at the top of `~/.ssh/config`; again is fine.
    #[arg(long, conflicts_with = "uninstall")]
    pub(super) install: bool,
    /// Take the line out again, and leave the rest as it was, to the byte.
    #[arg(long)]
    pub(super) uninstall: bool,
}

const COMPLETION_RECIPES: &str = "\
Loading it:
  bash        source <(banger completion bash)           # in ~/.bashrc
  zsh         source <(banger completion zsh)            # in ~/.zshrc, after compinit
  fish        banger completion fish | source            # in ~/.config/fish/config.fish
  powershell  banger completion powershell | Out-String | Invoke-Expression
  elvish      eval (banger completion elvish | slurp)

The script asks `banger` for everything: names of VMs, images and kernels are those that the daemon has now. Where no daemon
runs none is started, and there are no names. File names are never offered.";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
