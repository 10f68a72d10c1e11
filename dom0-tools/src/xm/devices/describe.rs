//! Devices as `xm block-list`, `network-list` and `list -l` show them.
//!
//! Law: what the guest wrote is shown only as a number that was parsed, so that
//! no guest writes on the operator's terminal.

use serde_json::{Value, json};

use super::{Device, Kind};
use crate::{
    config::{
        disk::{Access, Disk},
        vif::Vif,
    },
    xenstore::client::{Error, Nodes},
};

/// What is shown of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    device: Device,
    /// What a back end, or the tools, wrote.
    dev: String,
    mac: String,
    handle: i64,
    front_state: i64,
    back_state: i64,
    event_channel: i64,
    rings: [i64; 2],
    hotplug_status: String,
}

impl Shown {
    /// Reads a device.
    ///
    /// # Errors
    /// The store's.
    pub fn of(store: &mut impl Nodes, device: Device) -> Result<Self, Error> {
        let (back, front) = (device.back(), device.front());
        let mut number = |dir: &str, names: &[&str]| -> Result<i64, Error> {
            for name in names {
                // Absent, unreadable or no number: the next spelling.
                if let Some(value) = number(store, &format!("{dir}/{name}"))? {
                    return Ok(value);
                }
            }
            Ok(-1)
        };
        let handle = number(&back, &["handle"])?.max(0);
        let front_state = number(&front, &["state"])?;
        let back_state = number(&back, &["state"])?;
        let event_channel = number(
            &front,
            &[
                "event-channel",
                "event-channel-tx",
                "queue-0/event-channel",
                "queue-0/event-channel-tx",
            ],
        )?;
        let rings = match device.kind {
            Kind::Vbd => [
                number(
                    &front,
                    &[
                        "ring-ref",
                        "ring-ref0",
                        "queue-0/ring-ref",
                        "queue-0/ring-ref0",
                    ],
                )?,
                -1,
            ],
            Kind::Vif => [
                number(&front, &["tx-ring-ref", "queue-0/tx-ring-ref"])?,
                number(&front, &["rx-ring-ref", "queue-0/rx-ring-ref"])?,
            ],
        };
        let mut text = |name: &str| -> Result<String, Error> {
            Ok(store.find(&format!("{back}/{name}"))?.unwrap_or_default())
        };
        Ok(Self {
            device,
            dev: text("dev")?,
            mac: text("mac")?,
            handle,
            front_state,
            back_state,
            event_channel,
            rings,
            hotplug_status: text("hotplug-status")?,
        })
    }

    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.device.id
    }

    /// A row of `xm block-list`.
    #[must_use]
    pub fn block_row(&self) -> String {
        format!(
            "{:<5}  {:<3}  {:<3}   {:<3}    {:<3}    {:<5} {:<30}  ",
            self.device.id,
            0,
            self.handle,
            self.front_state,
            self.event_channel,
            self.rings[0],
            self.device.back()
        )
    }

    /// A row of `xm network-list`.
    #[must_use]
    pub fn network_row(&self) -> String {
        format!(
            "{:<3} {:<3}{:<17}    {:<3}   {:<3}    {:<3}   {:<5}/{:<5}   {:<30}  ",
            self.device.id,
            0,
            self.mac,
            self.handle,
            self.front_state,
            self.event_channel,
            self.rings[0],
            self.rings[1],
            self.device.back()
        )
    }

    /// The same as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut value = json!({
            "backend_id": 0,
            "handle": self.handle,
            "state": self.front_state,
            "backend_state": self.back_state,
            "hotplug_status": self.hotplug_status,
            "event_channel": self.event_channel,
            "backend_path": self.device.back(),
        });
        match self.device.kind {
            Kind::Vbd => {
                value["vdev"] = json!(self.device.id);
                value["dev"] = json!(self.dev);
                value["ring_ref"] = json!(self.rings[0]);
            }
            Kind::Vif => {
                value["idx"] = json!(self.device.id);
                value["mac"] = json!(self.mac);
                value["tx_ring_ref"] = json!(self.rings[0]);
                value["rx_ring_ref"] = json!(self.rings[1]);
            }
        }
        value
    }
}

fn number(store: &mut impl Nodes, path: &str) -> Result<Option<i64>, Error> {
    match store.find(path) {
        Err(Error::NotText { .. }) => Ok(None),
        text => Ok(text?.and_then(|t| t.trim().parse().ok())),
    }
}

/// The header of `xm block-list`.
pub const BLOCK_HEADER: &str = "Vdev  BE handle state evt-ch ring-ref BE-path";
/// The header of `xm network-list`.
pub const NETWORK_HEADER: &str =
    "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path";

/// A disk by libxl's names.
#[must_use]
pub fn disk(disk: &Disk, shown: Option<&Shown>) -> Value {
    let mut value = json!({
        "pdev_path": disk.target,
        "vdev": disk.vdev.name,
        "backend": "qdisk",
        "backend_domid": 0,
        "format": disk.format.word(),
        "removable": u8::from(disk.cdrom),
        "readwrite": u8::from(disk.access != Access::ReadOnly),
        "is_cdrom": u8::from(disk.cdrom),
        "throttle": disk.throttle.node(),
    });
    if let Some(discard) = disk.discard {
        value["discard_enable"] = json!(if discard { "True" } else { "False" });
    }
    with_state(value, shown)
}

/// A network interface by libxl's names.
#[must_use]
pub fn nic(vif: &Vif, shown: Option<&Shown>) -> Value {
    let mut value = json!({
        "devid": vif.devid,
        "mac": vif.mac,
        "bridge": vif.bridge,
        "ip": vif.ip,
        "script": vif.script,
        "ifname": vif.vifname,
        "mtu": vif.mtu,
        "nictype": "vif",
        "backend_domid": 0,
        "mode": vif.mode,
    });
    if let Some(forward) = &vif.forward {
        value["forward"] = json!(forward);
    }
    if let Some(rate) = vif.rate {
        value["rate_bytes_per_interval"] = json!(rate.bytes_per_interval());
        value["rate_interval_usecs"] = json!(rate.interval_us);
    }
    with_state(value, shown)
}

fn with_state(mut value: Value, shown: Option<&Shown>) -> Value {
    if let Some(shown) = shown {
        value["state"] = json!(shown.front_state);
        value["backend_state"] = json!(shown.back_state);
        value["hotplug_status"] = json!(shown.hotplug_status);
    }
    value
}

#[cfg(test)]
mod tests {
    use guest_abi::addr::DomId;

    use super::*;

    #[test]
    fn rows_are_those_of_xm() {
        let shown = Shown {
            device: Device::new(DomId(1859), Kind::Vbd, 51712),
            dev: "xvda".into(),
            mac: "00:16:3e:b9:b0:53".into(),
            handle: 0,
            front_state: 4,
            back_state: 4,
            event_channel: 8,
            rings: [522, 523],
            hotplug_status: "connected".into(),
        };
        assert_eq!(
            shown.block_row().trim_end(),
            "51712  0    0     4      8      522   /local/domain/0/backend/vbd/1859/51712"
        );
        let shown = Shown {
            device: Device::new(DomId(1), Kind::Vif, 0),
            ..shown
        };
        assert_eq!(
            shown.network_row().trim_end(),
            "0   0  00:16:3e:b9:b0:53    0     4      8     522  /523     /local/domain/0/backend/vif/1/0"
        );
    }
}
