//! All unsafe code outside `bins` and `guest`: one file per system facility, each behind a safe interface.

pub mod fd_stream;
