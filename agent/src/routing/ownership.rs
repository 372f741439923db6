//! Which rules and routes are ours.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use shared::{RouteId, Vip};

use super::{Action, Device, Family, MarkMask, PolicyRule, Route, RouteKind};

/// The numbers by which we know our own. A rule or route is ours when it carries our protocol
/// number **and** its priority or table is in our range; nothing else is seen or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    protocol: u8,
    rule_base: u32,
    table_base: u32,
    marks: MarkMask,
}

/// The rtnetlink protocol number that is ours by default. Free in `/etc/iproute2/rt_protos`, and
/// clear of Calico (80), OVN (84) and keepalived (18).
pub const DEFAULT_PROTOCOL: u8 = 69;
/// Rule priority = this + route id. This itself and the one after the highest are for
/// [shortcuts](Ownership::shortcuts).
pub const DEFAULT_RULE_BASE: u32 = 1_000;
/// Table = this + route id.
pub const DEFAULT_TABLE_BASE: u32 = 10_000;

/// The bits of a route id by which [shortcuts](Ownership::shortcuts) tell groups of 16.
const GROUP: u8 = 0xf0;

/// The kernel's own rules for `main` and `default`; that for `local` has priority 0.
const KERNEL_PRIORITY: u32 = 32_766;

/// The numbers would make us take the kernel's or another program's rules and routes for ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOwnership {
    #[error(
        "cannot use routing protocol {0}, which belongs to others; give --route-protocol one that \
         nobody uses, such as 69"
    )]
    Protocol(u8),
    #[error(
        "cannot use rule priorities from {0} on, for some are those of the kernel's rules (0 and \
         from 32766 on); give --rule-base a number from 1 to 32512"
    )]
    RuleBase(u32),
    #[error(
        "cannot use routing tables from {0} on, for some are the kernel's; give --table-base a \
         number from 255 to 4294967042"
    )]
    TableBase(u32),
}

impl Ownership {
    /// The numbers, once they are clear of those that are always somebody else's.
    pub fn new(
        protocol: u8,
        rule_base: u32,
        table_base: u32,
        marks: MarkMask,
    ) -> Result<Self, InvalidOwnership> {
        let last = u32::from(RouteId::MAX.number());
        // rtnetlink(7), rt_protos: the kernel, routing daemons, keepalived
        if matches!(protocol, 0..=18 | 42 | 80 | 84 | 99 | 186..=189 | 192) {
            return Err(InvalidOwnership::Protocol(protocol));
        }
        if rule_base == 0
            || rule_base.checked_add(last + 1).is_none_or(|highest| highest >= KERNEL_PRIORITY)
        {
            return Err(InvalidOwnership::RuleBase(rule_base));
        }
        // 253-255 are the kernel's
        if table_base < 255 || table_base.checked_add(last).is_none_or(|top| top == u32::MAX) {
            return Err(InvalidOwnership::TableBase(table_base));
        }
        Ok(Self { protocol, rule_base, table_base, marks })
    }

    /// The rtnetlink protocol number on everything we make.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Our bits of a mark.
    pub const fn marks(&self) -> MarkMask {
        self.marks
    }

    /// The priorities of our rules.
    pub fn priorities(&self) -> RangeInclusive<u32> {
        self.rule_base..=self.behind_all()
    }

    /// The priority behind the rules of all VIPs.
    pub fn behind_all(&self) -> u32 {
        self.priority(RouteId::MAX) + 1
    }

    /// The tables of our routes.
    pub fn tables(&self) -> RangeInclusive<u32> {
        self.table(RouteId::MIN)..=self.table(RouteId::MAX)
    }

    /// The priority of the rule of a VIP.
    pub fn priority(&self, id: RouteId) -> u32 {
        self.rule_base + u32::from(id.number())
    }

    /// The table of a VIP.
    pub fn table(&self, id: RouteId) -> u32 {
        self.table_base + u32::from(id.number())
    }

    /// The VIP's packets that are marked "away" are looked up in its table.
    pub fn rule(&self, family: Family, id: RouteId) -> PolicyRule {
        PolicyRule {
            family,
            priority: self.priority(id),
            mark: self.marks.away(id),
            mask: self.marks.of_packets(),
            action: Action::Lookup(self.table(id)),
        }
    }

    /// What spares packets most of the rules of VIPs: a node has one for each, and the kernel goes
    /// through them one by one. Packets that are not marked "away" go past all of them; those that
    /// are go to the rules of ids that begin as theirs does. Empty without `ids`, which are those
    /// of the family's VIPs.
    ///
    /// None can hide a packet's own rule, whichever of them are there: the first is not for packets
    /// that any rule of a VIP is for, and the others go past lower ids only.
    pub fn shortcuts(
        &self,
        family: Family,
        ids: impl IntoIterator<Item = RouteId>,
    ) -> BTreeSet<PolicyRule> {
        let groups: BTreeSet<u8> = ids.into_iter().map(|id| id.number() & GROUP).collect();
        let rule =
            |priority, mark, mask, action| PolicyRule { family, priority, mark, mask, action };
        let way = |mark, mask, target| {
            [
                rule(self.rule_base, mark, mask, Action::Goto(target)),
                rule(target, 0, 0, Action::Nop),
            ]
        };
        let away = self.marks.away_bit();
        let past_all =
            (!groups.is_empty()).then(|| way(0, away, self.behind_all())).into_iter().flatten();
        // the lowest group follows at once
        let to_groups = groups.iter().skip(1).filter_map(|group| {
            let id = RouteId::try_from(u32::from(*group)).ok()?;
            Some(way(self.marks.away(id), self.marks.away_group(GROUP), self.priority(id)))
        });
        past_all.chain(to_groups.flatten()).collect()
    }

    /// The VIP's table leads to its holder.
    pub fn route_to_holder(&self, vip: Vip, id: RouteId, device: Device) -> Route {
        Route {
            family: Family::of(vip.addr()),
            table: self.table(id),
            kind: RouteKind::ViaHolder { vip, device },
        }
    }

    /// The VIP's table never falls through to `main`.
    pub fn unreachable(&self, family: Family, id: RouteId) -> Route {
        Route { family, table: self.table(id), kind: RouteKind::Unreachable }
    }
}

impl Default for Ownership {
    fn default() -> Self {
        Self {
            protocol: DEFAULT_PROTOCOL,
            rule_base: DEFAULT_RULE_BASE,
            table_base: DEFAULT_TABLE_BASE,
            marks: MarkMask::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_text_is_that_of_ip() {
        let owned = Ownership::default();
        let id = RouteId::try_from(64).unwrap();
        let vip: Vip = "192.168.122.222".parse().unwrap();
        let eth0 = Device { index: 2, name: "eth0".to_owned() };
        assert_eq!(
            owned.rule(Family::V4, id).to_string(),
            "1064: from all fwmark 0x1040/0x10ff lookup 10064"
        );
        assert_eq!(
            owned.route_to_holder(vip, id, eth0).to_string(),
            "default via 192.168.122.222 dev eth0 table 10064 onlink"
        );
        assert_eq!(
            owned.unreachable(Family::V4, id).to_string(),
            "unreachable default table 10064 metric 4278198272"
        );
    }

    #[rstest]
    #[case(&[], &[])]
    #[case(&[64, 65, 79], &["1000: from all fwmark 0/0x1000 goto 1253", "1253: from all nop"])]
    #[case(
        &[3, 64, 65, 252],
        &[
            "1000: from all fwmark 0/0x1000 goto 1253",
            "1000: from all fwmark 0x1040/0x10f0 goto 1064",
            "1000: from all fwmark 0x10f0/0x10f0 goto 1240",
            "1064: from all nop",
            "1240: from all nop",
            "1253: from all nop",
        ],
    )]
    fn shortcuts_are_few(#[case] ids: &[u32], #[case] want: &[&str]) {
        let ids = ids.iter().map(|id| RouteId::try_from(*id).unwrap());
        let got = Ownership::default().shortcuts(Family::V4, ids);
        assert_eq!(got.iter().map(ToString::to_string).collect::<Vec<_>>(), want);
    }

    #[test]
    fn no_shortcut_goes_past_the_rule_of_a_packet() {
        let owned = Ownership::default();
        let rules: Vec<_> = owned.shortcuts(Family::V6, RouteId::all()).into_iter().collect();
        for id in RouteId::all() {
            for rule in &rules {
                let matches = owned.marks().away(id) & rule.mask == rule.mark;
                assert!(!(matches && rule.skips(owned.priority(id))), "{id} {rule}");
            }
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        let again = Ownership::new(
            DEFAULT_PROTOCOL,
            DEFAULT_RULE_BASE,
            DEFAULT_TABLE_BASE,
            MarkMask::default(),
        );
        assert_eq!(again, Ok(Ownership::default()));
    }

    #[rstest]
    #[case(2, 1000, 10_000, Err(InvalidOwnership::Protocol(2)))]
    #[case(186, 1000, 10_000, Err(InvalidOwnership::Protocol(186)))]
    #[case(69, 1, 255, Ok(()))]
    #[case(69, 0, 255, Err(InvalidOwnership::RuleBase(0)))]
    #[case(69, 32_512, 10_000, Ok(()))]
    #[case(69, 32_513, 10_000, Err(InvalidOwnership::RuleBase(32_513)))]
    #[case(69, u32::MAX, 10_000, Err(InvalidOwnership::RuleBase(u32::MAX)))]
    #[case(69, 1000, 254, Err(InvalidOwnership::TableBase(254)))]
    #[case(69, 1000, u32::MAX - 253, Ok(()))]
    #[case(69, 1000, u32::MAX - 252, Err(InvalidOwnership::TableBase(u32::MAX - 252)))]
    fn numbers_of_others_are_refused(
        #[case] protocol: u8,
        #[case] rule_base: u32,
        #[case] table_base: u32,
        #[case] want: Result<(), InvalidOwnership>,
    ) {
        let got = Ownership::new(protocol, rule_base, table_base, MarkMask::default());
        assert_eq!(got.map(|_| ()), want);
    }
}
