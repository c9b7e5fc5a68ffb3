//! The calls to systemd-resolved (org.freedesktop.resolve1(5)), each on a connection of its own: the bus may be restarted.

use std::net::Ipv4Addr;
use std::time::Duration;
use zbus::connection::{Builder, Connection};
use zbus::{DynamicType, Error, fdo};

const SERVICE: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const INTERFACE: &str = "org.freedesktop.resolve1.Manager";
/// The only domain that is ever routed.
const DOMAIN: &str = "vm";
/// How long the bus, and systemd-resolved, may take for one call.
const CALL_TIME: Duration = Duration::from_secs(3);
/// How long all calls together may take: less than the helper waits for the keeper, which it does without from then on.
const CALLS_TIME: Duration = Duration::from_secs(8);
/// `AF_INET`, as the interface wants it.
const AF_INET: i32 = libc::AF_INET;

async fn in_time(calls: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let silent = || Err("systemd-resolved does not answer in time".to_owned());
    tokio::time::timeout(CALLS_TIME, calls).await.unwrap_or_else(|_| silent())
}

/// Which bus; the system's, but in tests.
#[derive(Clone, Debug)]
pub(super) enum Bus {
    System,
    #[cfg(test)]
    At(String),
}

impl Bus {
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let builder = match self {
            Self::System => Builder::system(),
            #[cfg(test)]
            Self::At(address) => Builder::address(address.as_str()),
        };
        let connecting = tokio::time::timeout(CALL_TIME, builder.method_timeout(CALL_TIME).build());
        match connecting.await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(format!("this host's D-Bus cannot be reached: {error}")),
            Err(_) => Err("this host's D-Bus does not answer".to_owned()),
        }
    }

    /// Has `.vm` asked of an address by way of an interface, and nothing else by that way.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn route(&self, index: u32, address: Ipv4Addr) -> Result<(), String> {
        in_time(self.set(index, address)).await
    }

    async fn set(&self, index: u32, address: Ipv4Addr) -> Result<(), String> {
        let bus = self.connect().await?;
        let index = i32::try_from(index).map_err(|_| "there is no such interface".to_owned())?;
        // What narrows comes first: at no moment is the bridge asked for anything but `.vm`.
        call(&bus, "SetLinkDomains", &(index, vec![(DOMAIN, true)])).await?;
        // Ours is unsigned and in the clear, whatever the host wants of the world. Older versions lack some of these.
        for result in [
            call(&bus, "SetLinkDefaultRoute", &(index, false)).await,
            // No other way of asking for names goes to where guests would hear it, and might answer.
            call(&bus, "SetLinkLLMNR", &(index, "no")).await,
            call(&bus, "SetLinkMulticastDNS", &(index, "no")).await,
            call(&bus, "SetLinkDNSSEC", &(index, "no")).await,
            call(&bus, "SetLinkDNSOverTLS", &(index, "no")).await,
        ] {
            if let Err(error) = result {
                tracing::debug!(error, "a setting of the bridge's that this systemd-resolved does not have");
            }
        }
        call(&bus, "SetLinkDNS", &(index, vec![(AF_INET, address.octets().to_vec())])).await
    }

    /// Takes everything back.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn revert(&self, index: u32) -> Result<(), String> {
        let bus = self.connect().await?;
        let index = i32::try_from(index).map_err(|_| "there is no such interface".to_owned())?;
        call(&bus, "RevertLink", &(index,)).await
    }
}

async fn call<B: serde::Serialize + DynamicType>(bus: &Connection, method: &str, body: &B) -> Result<(), String> {
    match bus.call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body).await {
        Ok(_) => Ok(()),
        Err(Error::FDO(error)) if matches!(*error, fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_)) => {
            Err("systemd-resolved does not run on this host".to_owned())
        }
        Err(error) => Err(format!("systemd-resolved refused {method}: {error}")),
    }
}
