//! The CLI: parses, sends one request, renders one reply. Logic lives where it can be tested without a terminal.
//!
//! stdout is data, stderr is talk. `attach` connects a command in a guest to our streams; nothing else touches a guest.

mod args;
mod artifacts;
mod attach;
mod autostart;
mod build;
mod bundle;
mod client;
mod completion;
mod config;
mod daemon;
mod doctor;
mod failure;
mod helper;
mod human;
mod json;
mod leftovers;
mod logs;
mod output;
mod parse;
mod printable;
mod progress;
mod run;
mod ssh;
mod stats;
mod sys;
mod table;
mod vm;
mod vm_run;

pub use run::main;
