//! The flags of `bangerd`.

use clap::Parser;
use std::path::PathBuf;

/// banger's daemon: keeps a fleet of microVMs. The CLI starts it when it is needed.
#[derive(Debug, Parser)]
#[command(name = "bangerd", version = messages::frame::build_id())]
pub(super) struct Args {
    /// State directory; makes a second instance, socket and all
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// Stay in the foreground (the only mode there is: who starts it decides where its output goes)
    #[arg(long)]
    pub(super) foreground: bool,
    /// Required as root: the user to become, whose VMs these are
    #[arg(long, value_name = "USER")]
    pub(super) owner: Option<String>,
}
