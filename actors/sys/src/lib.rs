//! All unsafe code outside `bins` and `guest`: one file per system facility, each behind a safe interface.

pub mod detached;
pub mod fd_stream;
pub mod kvm_probe;
pub mod pidfd;
pub mod watched_fd;
