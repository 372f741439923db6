//! Which addresses are the cluster's own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// The networks and addresses whose traffic is not egress traffic.
///
/// Networks have no host bits, are sorted and differ from one another; they may overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterNetworks {
    pod_subnets: Vec<IpNet>,
    service_subnets: Vec<IpNet>,
    node_addresses: BTreeSet<IpAddr>,
    excluded: Vec<IpNet>,
    gateway_addresses: BTreeSet<IpAddr>,
}

impl ClusterNetworks {
    /// The same with these pod subnets.
    #[must_use]
    pub fn with_pod_subnets(mut self, nets: impl IntoIterator<Item = IpNet>) -> Self {
        self.pod_subnets = tidy(nets);
        self
    }

    /// The same with these service subnets.
    #[must_use]
    pub fn with_service_subnets(mut self, nets: impl IntoIterator<Item = IpNet>) -> Self {
        self.service_subnets = tidy(nets);
        self
    }

    /// The same with these addresses of nodes.
    #[must_use]
    pub fn with_node_addresses(mut self, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        self.node_addresses = addrs.into_iter().collect();
        self
    }

    /// The same with these excluded networks.
    #[must_use]
    pub fn with_excluded(mut self, nets: impl IntoIterator<Item = IpNet>) -> Self {
        self.excluded = tidy(nets);
        self
    }

    /// The same with these addresses of nodes that may hold VIPs.
    #[must_use]
    pub fn with_gateway_addresses(mut self, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        self.gateway_addresses = addrs.into_iter().collect();
        self
    }

    /// Where pods have their addresses.
    pub fn pod_subnets(&self) -> &[IpNet] {
        &self.pod_subnets
    }

    /// Where services have their cluster addresses.
    pub fn service_subnets(&self) -> &[IpNet] {
        &self.service_subnets
    }

    /// The addresses of all nodes.
    pub fn node_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.node_addresses
    }

    /// Where the nodes that may hold VIPs say so to each other, at most one address of each family
    /// for each; they are addresses of nodes, too.
    pub fn gateway_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.gateway_addresses
    }

    /// What pods reach with the node's address as if they were not mapped.
    pub fn excluded(&self) -> &[IpNet] {
        &self.excluded
    }
}

fn tidy(nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let sorted: BTreeSet<IpNet> = nets.into_iter().map(|net| net.trunc()).collect();
    sorted.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_lose_their_host_bits_their_order_and_their_doubles() {
        let nets =
            ["10.244.7.1/16", "10.96.0.0/12", "10.244.0.0/16"].map(|net| net.parse().unwrap());
        let networks = ClusterNetworks::default().with_pod_subnets(nets);
        let texts: Vec<String> = networks.pod_subnets().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.96.0.0/12", "10.244.0.0/16"]);
    }
}
