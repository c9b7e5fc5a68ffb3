//! The calls to firewalld (firewalld.dbus(5)): a bridge of banger's joins the zone that accepts everything, until firewalld or
//! the bridge ends. Nothing is made permanent.
//!
//! Its own table is no way: newer versions own it, and the kernel lets nobody else write to it.

use super::bus::Bus;
use std::time::Duration;
use zbus::DynamicType;
use zbus::connection::Connection;
use zbus::zvariant::Type;

const SERVICE: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONES: &str = "org.fedoraproject.FirewallD1.zone";
/// The zone of firewalld's own that lets all traffic pass (firewalld.zones(5)); our table still decides.
const ZONE: &str = "trusted";
/// How long all the calls may take: a firewall that hangs must not keep taps from being made.
const CALLS_TIME: Duration = Duration::from_secs(5);

/// Puts an interface into the zone, unless an administrator put it into another one. Where firewalld does not run there is
/// nothing to do.
///
/// # Errors
/// A sentence.
pub(super) async fn trust(bus: &Bus, interface: &str) -> Result<(), String> {
    in_time(async {
        let Some(bus) = running(bus).await? else { return Ok(()) };
        let zone: String = call(&bus, ZONES, "getZoneOfInterface", &(interface,)).await?;
        if zone == ZONE {
            return Ok(());
        }
        // NetworkManager puts whatever appears into the default zone: nobody's choice.
        if !zone.is_empty() && zone != call::<_, String>(&bus, SERVICE, "getDefaultZone", &()).await? {
            tracing::debug!(interface, zone, "left where an administrator put it");
            return Ok(());
        }
        call::<_, String>(&bus, ZONES, "changeZoneOfInterface", &(ZONE, interface)).await.map(drop)
    })
    .await
}

/// Takes the interface out of the zone again.
///
/// # Errors
/// A sentence.
pub(super) async fn distrust(bus: &Bus, interface: &str) -> Result<(), String> {
    in_time(async {
        let Some(bus) = running(bus).await? else { return Ok(()) };
        let zone: String = call(&bus, ZONES, "getZoneOfInterface", &(interface,)).await?;
        if zone == ZONE {
            call::<_, String>(&bus, ZONES, "removeInterface", &(ZONE, interface)).await?;
        }
        Ok(())
    })
    .await
}

async fn in_time(calls: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    tokio::time::timeout(CALLS_TIME, calls).await.unwrap_or_else(|_| Err("firewalld does not answer".to_owned()))
}

/// A connection, where firewalld runs. Asked for first: a call would start one that was stopped on purpose.
async fn running(bus: &Bus) -> Result<Option<Connection>, String> {
    const BUS: &str = "org.freedesktop.DBus";
    let bus = bus.connect().await?;
    let answer = bus.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "NameHasOwner", &(SERVICE,)).await;
    let runs = answer.and_then(|answer| answer.body().deserialize::<bool>());
    runs.map(|runs| runs.then_some(bus)).map_err(|error| format!("this host's D-Bus refused NameHasOwner: {error}"))
}

async fn call<B, T>(bus: &Connection, interface: &str, method: &str, body: &B) -> Result<T, String>
where
    B: serde::Serialize + DynamicType,
    T: for<'a> serde::Deserialize<'a> + Type,
{
    let answer = bus.call_method(Some(SERVICE), PATH, Some(interface), method, body).await;
    let read = |answer: zbus::Message| answer.body().deserialize::<T>();
    answer.and_then(read).map_err(|error| format!("firewalld refused {method}: {error}"))
}
