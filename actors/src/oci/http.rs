//! How every server is asked: by which cryptography, under which name, and how long one may stay silent.

use reqwest::{Client, ClientBuilder};
use std::sync::Once;
use std::time::Duration;

/// What servers see in their logs.
pub(crate) const USER_AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// Without a byte for so long, a connection counts as broken.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Which cryptography TLS is spoken with: ring's, everywhere. Must be called before the first client is made; again is fine.
pub(crate) fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error says that somebody installed one before, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

/// A client for downloads: they may take as long as they take, while bytes come.
pub(crate) fn client() -> ClientBuilder {
    install_provider();
    Client::builder().user_agent(USER_AGENT).connect_timeout(CONNECT_DEADLINE).read_timeout(READ_DEADLINE)
}
