//! The agent's tools for a guest's files, each in a process of its own: [`archive`] reads them all, [`unpack`] writes some.
//! What they say is on stderr, for whoever asked; the host trusts nothing in what they write.

pub mod archive;
mod holes;
pub mod unpack;

use std::io;

/// Reads stdin to its end.
///
/// # Errors
/// Stdin breaks.
pub fn hold() -> io::Result<()> {
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map(drop)
}
