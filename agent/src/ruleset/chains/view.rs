//! What the rules of one family say again and again of what they are made from.

use ipnet::IpNet;
use shared::{RouteId, Vip};

use super::super::parts::{
    Expr, Part, address, any, choose, count, ct_original_daddr, declared, drop, goes_to, iifname,
    is, is_not, map, network, quoted, saddr, set,
};
use super::super::{Input, Rule, known_set, unsure_set};
use crate::routing::Family;

/// An `Input` as seen by the rules of one family.
pub(super) struct View<'a> {
    pub(super) input: &'a Input,
    pub(super) family: Family,
}

impl View<'_> {
    pub(super) fn vips(&self) -> impl Iterator<Item = (Vip, RouteId)> {
        let family = self.family;
        let of_family = move |vip: &Vip| Family::of(vip.addr()) == family;
        self.input.vips.iter().map(|(vip, id)| (*vip, *id)).filter(move |(vip, _)| of_family(vip))
    }

    /// `ip saddr { VIPs }` and the like; `None` when there is no VIP of the family.
    pub(super) fn is_vip(&self, field: Expr) -> Option<Part> {
        let vips: Vec<_> = self.vips().map(|(vip, _)| address(vip)).collect();
        (!vips.is_empty()).then(|| is(field, set(vips)))
    }

    /// `ip saddr vmap { VIP : goto PREFIX_ID, … }`.
    pub(super) fn by_vip(&self, prefix: &str, eligible: impl Fn(&Vip) -> bool) -> Option<Part> {
        let entries: Vec<_> = self
            .vips()
            .filter(|(vip, _)| eligible(vip))
            .map(|(vip, id)| (address(vip), goes_to(&format!("{prefix}_{id}"))))
            .collect();
        (!entries.is_empty()).then(|| choose(saddr(self.family), map(entries)))
    }

    pub(super) fn networks(&self, of: &[IpNet]) -> Vec<Expr> {
        of.iter().filter(|net| Family::of(net.addr()) == self.family).map(network).collect()
    }

    pub(super) fn inside(&self, field: Expr) -> Part {
        is(field, set(self.networks(&self.input.internal)))
    }

    pub(super) fn outside(&self, field: Expr) -> Part {
        is_not(field, set(self.networks(&self.input.internal)))
    }

    pub(super) fn pods_as_source(&self) -> Option<Part> {
        let pods = self.networks(&self.input.pods);
        (!pods.is_empty()).then(|| is(saddr(self.family), set(pods)))
    }

    /// Of this node's pods those that nobody knows, while one of them may be expected.
    pub(super) fn unknown_pods(&self) -> Option<Rule> {
        let (family, overlays) = (self.family, &self.input.overlays);
        let of_pods = self.pods_as_source()?;
        let overlay = set(overlays.iter().map(|name| quoted(name)));
        let local = (!overlays.is_empty()).then(|| is_not(iifname(), overlay));
        let unsure = is(any(saddr(family), family), declared(unsure_set(family)));
        let known = is_not(saddr(family), declared(known_set(family)));
        // The controller is a pod, too: were it held, it could never say that it need not be.
        let api_server = self.input.api_server.filter(|addr| Family::of(*addr) == family);
        let others = api_server.map(|addr| is_not(ct_original_daddr(family), address(addr)));
        let parts = [unsure].into_iter().chain(local).chain([of_pods, known]).chain(others);
        Some(Rule::new("pods unknown here", parts.chain([count("unsure"), drop()])))
    }

    pub(super) fn over_uplink(&self) -> Option<Part> {
        let names: Vec<_> = self.input.uplinks.iter().map(|name| quoted(name)).collect();
        (!names.is_empty()).then(|| is(iifname(), set(names)))
    }
}
