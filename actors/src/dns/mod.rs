//! Names: `<vm>.vm` for every VM that runs, and the way back from an address to its name.
//!
//! ```text
//! registry ─ FollowVm(watch) ─▶ ZoneKeeper ─ writes ─▶ Zone ◀─ reads ─ Responder ◀─ UDP, TCP ─ host, guests
//! network  ─ ServeBridge ─────▶     │                                     │
//!                                   └─ BindDns ─▶ bangerd-root            └─ Forwarder ─▶ the host's resolvers
//! ```
//! [`zone`] and [`audience`] are pure. The keeper owns the zone and both listeners; the responder answers on the worker pool,
//! so that no guest's questions delay the keeper. Only guests are forwarded for; the host has resolvers of its own.

mod actor;
mod audience;
mod forward;
mod limits;
mod responder;
mod server;
mod status;
mod tcp;
#[cfg(test)]
mod tests;
mod zone;

pub use actor::{DnsSettings, FollowVm, ServeBridge, ZoneKeeper};
pub use forward::{HostUpstreams, Upstreams};
pub use status::{BridgeListener, DnsStatus, HostRouting, LoopbackListener};
pub use zone::{Answer, Zone};
