//! The agent as a host process, driven over a real link: everything about operations and the control stream that needs no
//! guest.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod control;
#[cfg(test)]
mod host;
#[cfg(test)]
mod hostile;
