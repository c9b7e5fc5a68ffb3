//! Which cryptography TLS is spoken with: ring's, everywhere.

use std::sync::Once;

/// Must be called before the first client is made; again is fine.
pub(crate) fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error says that somebody installed one before, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}
