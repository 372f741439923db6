//! What a pod will get as soon as its addresses are known.

use crate::{PodIp, Vip};

/// By family, the VIP that a pod will leave with; without one it is held in that family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    ipv4: Option<Vip>,
    ipv6: Option<Vip>,
}

impl Expected {
    /// With that VIP in its family, whatever was said of it before.
    #[must_use]
    pub fn with(mut self, vip: Vip) -> Self {
        *self.of_family_mut(vip) = Some(vip);
        self
    }

    /// As [`with`](Self::with); false, and nothing else is changed, if the family has another one.
    pub(crate) fn add(&mut self, vip: Vip) -> bool {
        *self.of_family_mut(vip).get_or_insert(vip) == vip
    }

    /// What an address of the pod is mapped to; `None` holds it.
    pub fn of(&self, ip: PodIp) -> Option<Vip> {
        if ip.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }

    /// The VIPs, IPv4 first.
    pub fn vips(&self) -> impl Iterator<Item = Vip> {
        self.ipv4.into_iter().chain(self.ipv6)
    }

    fn of_family_mut(&mut self, vip: Vip) -> &mut Option<Vip> {
        if vip.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 }
    }
}
