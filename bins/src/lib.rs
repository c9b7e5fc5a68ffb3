//! The programs: `banger`, `bangerd`, `bangerd-root` and `banger-emu`. Thin: parse, build, run; policy lives in `actors`.

pub mod cli;
pub mod daemon;
pub mod emu;
pub mod privileged;
