//! skeleton
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to measure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Options {
    pub(crate) only: Option<String>,
    pub(crate) report: PathBuf,
    pub(crate) cache: Option<PathBuf>,
}
pub(crate) fn run(_w: World, _o: &Options) -> Result<u8, Box<dyn std::error::Error>> {
    let _ = (&_o.only, &_o.report, &_o.cache);
    Err("not yet".into())
}
