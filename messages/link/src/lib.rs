//! How frames travel: reading and writing them on any byte stream, and many streams over one port.
//!
//! Used by every process of banger. Knows nothing of what the frames say, apart from the hello.

pub mod epoch;
pub mod frames;
pub mod mux;
