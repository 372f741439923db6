//! Pure: what other nodes' adverts say: who else serves a VIP of ours, and who disturbs it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use shared::Vip;

use super::config::Instance;

/// Nodes learn of a change one after the other, and disagree meanwhile.
const REPORTED_AFTER: Duration = Duration::from_secs(5);
/// A conflict of which nothing was heard for so long is over.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// What a node says when it holds addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    pub from: IpAddr,
    /// The VRRP id: a route id, if it is one of ours.
    pub id: u8,
    /// 0: it lets go.
    pub priority: u8,
    pub addresses: Vec<IpAddr>,
}

impl Advert {
    /// Reads VRRP of version 2 or 3, without its IP header.
    pub fn read(packet: &[u8], from: IpAddr) -> Option<Self> {
        let &[kind, id, priority, count, ..] = packet else { return None };
        if !matches!(kind, 0x21 | 0x31) {
            return None;
        }
        let mut rest = packet.get(8..)?;
        let mut addresses = Vec::with_capacity(count.into());
        for _ in 0..count {
            let address: IpAddr = if from.is_ipv4() {
                let (address, more) = rest.split_first_chunk::<4>()?;
                rest = more;
                Ipv4Addr::from(*address).into()
            } else {
                let (address, more) = rest.split_first_chunk::<16>()?;
                rest = more;
                Ipv6Addr::from(*address).into()
            };
            addresses.push(address);
        }
        Some(Self { from, id, priority, addresses })
    }
}

/// What is to be remembered of adverts.
#[derive(Debug, Default)]
pub struct Hearing {
    /// By whether it is IPv4, and route id.
    ids: BTreeMap<(bool, u8), Vip>,
    vips: BTreeMap<Vip, u8>,
    conflicts: BTreeMap<Conflict, Period>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Conflict {
    /// Somebody uses the route id of a VIP for other addresses.
    Id { vip: Vip, id: u8, from: IpAddr },
    /// Somebody announces a VIP under another id.
    Address { vip: Vip, id: u8, from: IpAddr },
}

#[derive(Debug)]
struct Period {
    first: Instant,
    last: Instant,
    addresses: Vec<IpAddr>,
}

impl Hearing {
    /// These VIPs are ours.
    pub fn expect(&mut self, instances: &BTreeMap<Vip, Instance>) {
        let number = |instance: &Instance| instance.route_id.number();
        self.vips = instances.iter().map(|(vip, instance)| (*vip, number(instance))).collect();
        self.ids = self.vips.iter().map(|(vip, id)| ((vip.is_ipv4(), *id), *vip)).collect();
    }

    /// The VIP that the sender serves, if it is one of ours.
    pub fn hear(&mut self, advert: &Advert, now: Instant) -> Option<Vip> {
        let vip = self.ids.get(&(advert.from.is_ipv4(), advert.id)).copied();
        let (from, id) = (advert.from, advert.id);
        if let Some(vip) = vip {
            if advert.addresses == [vip.addr()] {
                return (advert.priority > 0).then_some(vip);
            }
            self.conflict(Conflict::Id { vip, id, from }, advert, now);
        }
        for address in &advert.addresses {
            let vip = Vip::try_from(*address).ok();
            if let Some(vip) = vip.filter(|vip| self.vips.get(vip).is_some_and(|own| *own != id)) {
                self.conflict(Conflict::Address { vip, id, from }, advert, now);
            }
        }
        None
    }

    fn conflict(&mut self, conflict: Conflict, advert: &Advert, now: Instant) {
        let new = || Period { first: now, last: now, addresses: Vec::new() };
        let period = self.conflicts.entry(conflict).or_insert_with(new);
        period.last = now;
        period.addresses.clone_from(&advert.addresses);
    }

    /// What has been wrong for a while and still is.
    pub fn conflicts(&mut self, now: Instant) -> Vec<(Vip, String)> {
        self.conflicts.retain(|_, period| now - period.last < FORGOTTEN_AFTER);
        let standing = self.conflicts.iter().filter(|(_, period)| {
            period.last.saturating_duration_since(period.first) >= REPORTED_AFTER
        });
        standing
            .map(|(conflict, period)| {
                let (Conflict::Id { vip, .. } | Conflict::Address { vip, .. }) = conflict;
                (*vip, told(conflict, &period.addresses))
            })
            .collect()
    }
}

fn told(conflict: &Conflict, addresses: &[IpAddr]) -> String {
    let list: Vec<String> = addresses.iter().take(5).map(ToString::to_string).collect();
    let list = if list.is_empty() { "no address".to_owned() } else { list.join(", ") };
    match conflict {
        Conflict::Id { vip, id, from } => format!(
            "{from} on this network uses route id {id} of VIP {vip} as a VRRP id, for {list}; give \
             the VIP another route id"
        ),
        Conflict::Address { vip, id, from } => format!(
            "{from} on this network announces VIP {vip} as well, with VRRP id {id}; two machines \
             hold one address"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::priority::Place;
    use super::*;

    fn hearing() -> Hearing {
        let mut hearing = Hearing::default();
        let instance = |id: u32| Instance {
            route_id: id.try_into().unwrap(),
            interface: "eth0".to_owned(),
            place: Place::Candidate(0),
        };
        let vips = [("192.0.2.7", 7), ("192.0.2.8", 8), ("fd00::7", 7)];
        hearing.expect(&vips.map(|(vip, id)| (vip.parse().unwrap(), instance(id))).into());
        hearing
    }

    fn advert(from: &str, id: u8, priority: u8, addresses: &[&str]) -> Advert {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Advert { from: from.parse().unwrap(), id, priority, addresses }
    }

    #[test]
    fn adverts_are_read_as_they_are_on_the_wire() {
        let packet = [0x31, 7, 182, 1, 0, 20, 0xab, 0xcd, 192, 0, 2, 7];
        let from = "192.0.2.1".parse().unwrap();
        let expected = advert("192.0.2.1", 7, 182, &["192.0.2.7"]);
        assert_eq!(Advert::read(&packet, from), Some(expected));
        assert_eq!(Advert::read(&packet[..11], from), None);
        assert_eq!(Advert::read(&[0x32, 7, 182, 0, 0, 20, 0, 0], from), None);
        let mut sixth = vec![0x31, 7, 1, 1, 0, 20, 0, 0];
        sixth.extend("fd00::7".parse::<Ipv6Addr>().unwrap().octets());
        let from = "fe80::1".parse().unwrap();
        assert_eq!(Advert::read(&sixth, from), Some(advert("fe80::1", 7, 1, &["fd00::7"])));
    }

    #[test]
    fn another_node_that_serves_a_vip_of_ours_is_told() {
        let (mut hearing, now) = (hearing(), Instant::now());
        let mut hear = |advert| hearing.hear(&advert, now);
        let vip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(hear(advert("192.0.2.2", 7, 100, &["192.0.2.7"])), vip("192.0.2.7"));
        assert_eq!(hear(advert("fe80::2", 7, 100, &["fd00::7"])), vip("fd00::7"));
        assert_eq!(hear(advert("192.0.2.2", 7, 0, &["192.0.2.7"])), None);
        assert_eq!(hear(advert("192.0.2.2", 9, 100, &["192.0.2.9"])), None);
        assert_eq!(hearing.conflicts(now), []);
    }

    #[test]
    fn conflicts_are_told_when_they_last_and_forgotten_when_they_end() {
        let (mut hearing, start) = (hearing(), Instant::now());
        for second in 0..=5 {
            let now = start + Duration::from_secs(second);
            assert_eq!(hearing.conflicts(now), []);
            assert_eq!(hearing.hear(&advert("192.0.2.9", 7, 100, &["192.0.2.50"]), now), None);
            assert_eq!(hearing.hear(&advert("192.0.2.9", 30, 9, &["192.0.2.8"]), now), None);
        }
        let now = start + Duration::from_secs(5);
        assert_eq!(
            hearing
                .conflicts(now)
                .iter()
                .map(|(vip, seen)| format!("{vip}: {seen}"))
                .collect::<Vec<_>>(),
            [
                "192.0.2.7: 192.0.2.9 on this network uses route id 7 of VIP 192.0.2.7 as a VRRP id, for \
                 192.0.2.50; give the VIP another route id",
                "192.0.2.8: 192.0.2.9 on this network announces VIP 192.0.2.8 as well, with VRRP id 30; two \
                 machines hold one address",
            ]
        );
        assert_eq!(hearing.conflicts(now + FORGOTTEN_AFTER), []);
    }
}
