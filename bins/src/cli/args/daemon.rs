//! Flags of `banger daemon` and `banger config`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum DaemonCommand {
    /// Show whether the daemon runs, and what it says of itself.
    Status,
    /// Start the daemon. It is not an error if it runs already.
    Start(DaemonStartArgs),
    /// Stop the daemon. VMs keep running.
    Stop,
    /// Print the daemon's log.
    Logs(FollowArgs),
    /// The privileged helper that makes bridges and taps; needs root.
    #[command(subcommand)]
    Root(RootCommand),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DaemonStartArgs {
    /// As root: the user that the daemon runs as.
    #[arg(long, value_name = "USER")]
    pub(in crate::cli) owner: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FollowArgs {
    /// Print what is added, until interrupted.
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RootCommand {
    /// Start the helper for a user.
    Start(OwnerArgs),
    /// Stop the helper. The network of running VMs stays.
    Stop(OwnerArgs),
    /// Show whether the helper answers.
    Status(OwnerArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OwnerArgs {
    /// The user that the helper serves. Whoever called sudo when absent.
    #[arg(long, value_name = "USER")]
    pub(in crate::cli) owner: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ConfigCommand {
    /// Print every setting.
    Show {
        /// Say where each came from.
        #[arg(long)]
        origin: bool,
    },
    /// Check the configuration file.
    Check,
}
