//! The network of pods.
//!
//! Owns: making network namespaces; the built-in network (one bridge, addresses of both families, masquerade, host
//! ports by berth's own nf_tables table); calling CNI plugins instead when a configuration is present; the durable
//! record of what each sandbox has, so that a restarted daemon frees it rightly. Never: gRPC, a pod's `/etc/resolv.conf`
//! or `/etc/hosts`, processes other than CNI plugins. Host-network pods do not come here.
//!
//! ```text
//! create_netns ─▶ a thread unshares, sets the loopback up, hands out the descriptor, ends
//! attach ─┬ no CNI configuration ─▶ bridge: address + ports reserved ─▶ record ∥ (veth ─▶ ports ─▶ pod's side)
//!         └ CNI configuration ────▶ namespace pinned ─▶ record ─▶ ADD … ADD ─▶ record with result
//! detach ── by the record, whatever the configuration says today; idempotent
//! sweep  ── at start: all that is ours and belongs to no known sandbox
//! ```
//!
//! # What host ports can do
//!
//! TCP, UDP and SCTP, from outside, from pods (their own included) and from the host itself, at every address of the
//! host and at `127.0.0.1`. Not at `::1`: the kernel has no `route_localnet` for IPv6.
//!
//! # What stays on the host
//!
//! The bridge and the table `inet berth-BRIDGE` stay while the daemon runs, and while pods have an address when it does
//! not. [`Network::shutdown`] and [`Network::sweep`] remove both when no pod is left. `ip_forward` stays on. Another
//! table that drops forwarded packets (Docker's iptables policy, a firewall) wins over ours, as nf_tables has it: an
//! accept ends only the chain that says it.

mod bridge;
mod cni;
mod conntrack;
mod device;
mod dial;
mod error;
mod hostport;
mod ipam;
mod lease;
mod netlink;
mod netns;
mod network;
mod nft;
mod pin;
mod request;
mod status;
mod sys;
mod sysctl;
mod thread;

pub use bridge::BridgeError;
pub use cni::{CniError, ConfigError, ContentError, PluginError};
pub use device::{DeviceError, move_device};
pub use dial::dial_loopback;
pub use error::{AttachError, CheckError, DetachError, PodCidrError, ShutdownError, StartError, SweepError};
pub use hostport::{HostPortError, PortMapping, Protocol};
pub use ipam::{Exhausted, SubnetError};
pub use netlink::NetlinkError;
pub use netns::{Netns, NetnsError};
pub use network::Network;
pub use pin::PinError;
pub use request::{AttachRequest, Attachment, NetworkConfig, PodIdentity};
pub use status::{Mode, NetworkStatus};
pub use sysctl::SysctlError;
pub use thread::ThreadError;
