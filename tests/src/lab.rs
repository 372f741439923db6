//! The laboratory: what it is made of, and that all of it goes away.
//!
//! ```text
//!  p1-1 p1-2      p2-1 p2-2      p3-1 p3-2        10.244.<i>.1<k>/24   fd00:244:<i>::1<k>/64
//!    └─┬──┘         └─┬──┘         └─┬──┘
//!    cni0           cni0           cni0           10.244.<i>.1         fd00:244:<i>::1
//!     n1 ─flannel.1─ n2 ─flannel.1─ n3            VXLAN 1 over eth0, port 8472
//!    eth0           eth0           eth0           192.168.122.1<i>/24  fd00:122::1<i>/64
//!  ────┴───┬──────────┴──────┬───────┴────        LAN (namespace lan, bridge br0)
//!       outside            router                 .64, .1              fd00:122::64, ::1
//!                            │                    203.0.113.1/24       fd00:203::1/64
//!                           far                   203.0.113.64         fd00:203::64
//! ```
//! Neither `outside` nor `router` has a route to the pod networks: a pod's own address that leaks
//! is seen by them and gets no answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::host::Host;
use crate::sweep;

mod wiring;

/// Port of the Service's `ClusterIP`, TCP and UDP.
pub const CLUSTER_IP_PORT: u16 = 80;
/// The Service's port on every node, TCP and UDP.
pub const NODE_PORT: u16 = 30080;
/// The port of the pod behind the Service.
pub const SERVICE_TARGET_PORT: u16 = 8080;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `IPv4`.
    V4,
    /// `IPv6`.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Who makes the cluster's own rules: pods leave with the node's address, kube-proxy's Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// `iptables-nft`, as flannel and kube-proxy write them.
    #[default]
    IptablesNft,
    /// `iptables-legacy`.
    IptablesLegacy,
    /// Native nftables.
    Nft,
    /// Nobody masquerades; Service and FORWARD rules are native nftables.
    None,
}

impl Masquerade {
    /// All that masquerade.
    pub const MASQUERADING: [Self; 3] = [Self::IptablesNft, Self::IptablesLegacy, Self::Nft];
}

/// `externalTrafficPolicy` of the Service's node port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every node forwards; clients outside are masqueraded.
    #[default]
    Cluster,
    /// Only the pod's node answers; the pod sees the client's address.
    Local,
}

/// What to build; made by [`Lab::builder`].
#[derive(Clone, Copy, Debug)]
pub struct LabBuilder {
    nodes: usize,
    pods_per_node: usize,
    masquerade: Masquerade,
    traffic_policy: TrafficPolicy,
    service_pod: (usize, usize),
    rp_filter: u8,
    kube_proxy: bool,
}

impl LabBuilder {
    /// Number of nodes, 1 to 9; 3 by default.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Number of pods on each node, 0 to 9; 2 by default.
    #[must_use]
    pub fn pods_per_node(mut self, pods: usize) -> Self {
        self.pods_per_node = pods;
        self
    }

    /// Who masquerades; `iptables-nft` by default.
    #[must_use]
    pub fn masquerade(mut self, masquerade: Masquerade) -> Self {
        self.masquerade = masquerade;
        self
    }

    /// The Service's `externalTrafficPolicy`; `Cluster` by default.
    #[must_use]
    pub fn traffic_policy(mut self, policy: TrafficPolicy) -> Self {
        self.traffic_policy = policy;
        self
    }

    /// The pod behind the Service: node and pod, counted from 1; the first of node 2 by default
    /// (of node 1 where there is but one).
    #[must_use]
    pub fn service_pod(mut self, node: usize, pod: usize) -> Self {
        self.service_pod = (node, pod);
        self
    }

    /// `rp_filter` of the nodes' interfaces: 0 off, 1 strict (the default), 2 loose.
    #[must_use]
    pub fn rp_filter(mut self, rp_filter: u8) -> Self {
        self.rp_filter = rp_filter;
        self
    }

    /// Leaves the rules of kube-proxy to a real one, and pods to a real kubelet.
    pub(crate) fn for_kubernetes(mut self) -> Self {
        self.kube_proxy = false;
        self.pods_per_node(0)
    }

    /// Builds it. What dead test processes left behind is removed before.
    pub fn build(self) -> Result<Lab> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.build_named(sweep::prefix(process::id(), number))
    }

    /// Builds it with names that begin so.
    pub(crate) fn build_named(self, prefix: String) -> Result<Lab> {
        sweep::sweep_once();
        // From here on, dropping `lab` removes what has been made so far.
        let lab = Lab::new(self, prefix)?;
        wiring::build(&lab).context("cannot build the laboratory")?;
        Ok(lab)
    }
}

/// A cluster of network namespaces; removed, with all that runs in it, when dropped.
#[derive(Debug)]
pub struct Lab {
    /// What it was built from.
    options: LabBuilder,
    prefix: String,
    lan: Host,
    router: Host,
    outside: Host,
    far: Host,
    nodes: Vec<Host>,
    pods: Vec<Vec<Host>>,
}

impl Lab {
    /// A laboratory of three nodes with two pods each, unless told otherwise.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            nodes: 3,
            pods_per_node: 2,
            masquerade: Masquerade::default(),
            traffic_policy: TrafficPolicy::default(),
            service_pod: (2, 1),
            rp_filter: 1,
            kube_proxy: true,
        }
    }

    fn new(mut options: LabBuilder, prefix: String) -> Result<Self> {
        let in_range = (1..=9).contains(&options.nodes) && options.pods_per_node <= 9;
        if !in_range {
            return Err(anyhow!("a laboratory has 1 to 9 nodes and 0 to 9 pods on each"));
        }
        options.service_pod.0 = options.service_pod.0.min(options.nodes);
        let host = |name: String, v4: String, v6: String| -> Result<Host> {
            let netns = format!("{prefix}{name}");
            Ok(Host { name, netns, v4: v4.parse::<Ipv4Addr>()?, v6: v6.parse::<Ipv6Addr>()? })
        };
        let on_lan = |name: &str, last: &str| {
            host(name.to_owned(), format!("192.168.122.{last}"), format!("fd00:122::{last}"))
        };
        let nodes = 1..=options.nodes;
        let pods_of = |node: usize| {
            (1..=options.pods_per_node)
                .map(|pod| {
                    let (v4, v6) =
                        (format!("10.244.{node}.1{pod}"), format!("fd00:244:{node}::1{pod}"));
                    host(format!("p{node}-{pod}"), v4, v6)
                })
                .collect()
        };
        Ok(Self {
            lan: on_lan("lan", "254")?,
            router: on_lan("router", "1")?,
            outside: on_lan("outside", "64")?,
            far: host("far".to_owned(), "203.0.113.64".to_owned(), "fd00:203::64".to_owned())?,
            nodes: nodes
                .clone()
                .map(|node| on_lan(&format!("n{node}"), &format!("1{node}")))
                .collect::<Result<_>>()?,
            pods: nodes.map(pods_of).collect::<Result<_>>()?,
            options,
            prefix,
        })
    }

    /// The beginning of the names of its namespaces.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Node `number`, counted from 1.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, number: usize) -> &Host {
        &self.nodes[number - 1]
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Host] {
        &self.nodes
    }

    /// Pod `pod` of node `node`, both counted from 1.
    ///
    /// # Panics
    /// When there is no such pod.
    pub fn pod(&self, node: usize, pod: usize) -> &Host {
        &self.pods[node - 1][pod - 1]
    }

    /// All pods, by node.
    pub fn pods(&self) -> impl Iterator<Item = &Host> {
        self.pods.iter().flatten()
    }

    /// The host outside that is on the nodes' LAN.
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// The host outside that is behind the router.
    pub fn far(&self) -> &Host {
        &self.far
    }

    /// The router between the LAN and `far`; its interfaces are `lan` and `far`.
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// The MAC address of a machine on the LAN: 02:00, then its address there.
    pub fn lan_mac(host: &Host) -> [u8; 6] {
        let [a, b, c, d] = host.v4.octets();
        [2, 0, a, b, c, d]
    }

    /// The LAN's switch: bridge `br0`, with one port per machine, named like it. It has no address.
    pub fn lan(&self) -> &Host {
        &self.lan
    }

    /// Who masquerades.
    pub fn masquerade(&self) -> Masquerade {
        self.options.masquerade
    }

    /// The Service's `externalTrafficPolicy`.
    pub fn traffic_policy(&self) -> TrafficPolicy {
        self.options.traffic_policy
    }

    /// Whether the laboratory makes kube-proxy's rules.
    pub(crate) fn has_kube_proxy(&self) -> bool {
        self.options.kube_proxy
    }

    /// The pod behind the Service, none when there are no pods.
    pub fn service_pod(&self) -> Option<&Host> {
        let (node, pod) = self.options.service_pod;
        self.pods.get(node.checked_sub(1)?)?.get(pod.checked_sub(1)?)
    }

    /// The Service's address inside the cluster.
    pub fn cluster_ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 96, 0, 10).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10).into(),
        }
    }

    /// The pods' network.
    pub fn pod_subnet(&self, family: Family) -> &'static str {
        match family {
            Family::V4 => "10.244.0.0/16",
            Family::V6 => "fd00:244::/32",
        }
    }

    /// The Services' network.
    pub fn service_subnet(&self, family: Family) -> &'static str {
        match family {
            Family::V4 => "10.96.0.0/12",
            Family::V6 => "fd00:96::/112",
        }
    }

    /// Pulls the plug of a node: its LAN cable is out. See [`Lab::plug_in`].
    pub fn unplug(&self, node: usize) -> Result<()> {
        self.lan.sh(&format!("ip link set n{node} down")).map(drop)
    }

    /// Undoes [`Lab::unplug`].
    pub fn plug_in(&self, node: usize) -> Result<()> {
        self.lan.sh(&format!("ip link set n{node} up")).map(drop)
    }

    fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.lan, &self.router, &self.outside, &self.far]
            .into_iter()
            .chain(&self.nodes)
            .chain(self.pods())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let outcome = sweep::remove(&self.prefix);
        // A second panic would abort the test run and hide the first.
        assert!(
            outcome.is_ok() || thread::panicking(),
            "cannot remove the laboratory: {outcome:?}"
        );
    }
}
