//! The scenarios, one file for each group. `scenarios.txt` says what each shows.

mod artifacts;
mod bundle;
mod daemon;
mod docker;
mod faults;
mod images;
mod ipv6;
mod isolation;
mod lifecycle;
pub(crate) mod names;
mod network;
pub(crate) mod oci;
mod remove;
mod run;
mod ssh;
mod streams;

use crate::case::Code;

/// The code of each scenario.
pub(crate) const ALL: &[(&str, Code)] = &[
    ("bare-run", run::bare_run),
    ("exit-status", run::exit_status),
    ("signal-status", run::signal_status),
    ("two-at-once", run::two_at_once),
    ("detach", run::detach),
    ("bad-input", run::bad_input),
    ("docker", docker::docker),
    ("streams-apart", streams::apart),
    ("stdin-1g", streams::stdin_1g),
    ("rm", remove::rm),
    ("rm-after-failure", remove::rm_after_failure),
    ("rm-boot-timeout", remove::rm_boot_timeout),
    ("client-killed", remove::client_killed),
    ("delete", remove::delete),
    ("stop-start", lifecycle::stop_start),
    ("guest-reboot", lifecycle::guest_reboot),
    ("guest-poweroff", lifecycle::guest_poweroff),
    ("kill", lifecycle::kill),
    ("logs", lifecycle::logs),
    ("vmm-killed", faults::vmm_killed),
    ("agent-killed", faults::agent_killed),
    ("net-nat", network::nat),
    ("dns", names::dns),
    ("isolation", isolation::isolation),
    ("ipv6", ipv6::ipv6),
    ("twelve", isolation::twelve),
    ("two-instances", isolation::two_instances),
    ("no-helper", network::no_helper),
    ("ssh", ssh::ssh),
    ("image-build", images::build),
    ("oci", oci::boot),
    ("oci-exact", oci::exact),
    ("bundle", bundle::bundle),
    ("daemon-killed", daemon::killed),
    ("pull-interrupted", artifacts::pull_interrupted),
];
