//! How our rules and routes look on the wire, and what a message of the kernel's is to us.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::Emitable;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RoutePreference, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use shared::Vip;

use super::text::{describe_route, describe_rule};
use crate::routing::{
    Action, Device, Family, Foreign, ObjectKind, Ownership, PolicyRule, Route, RouteKind, Stray,
    UNREACHABLE_METRIC,
};

/// The metric that IPv6 gives to a route that is added without one. IPv4 has none then.
const V6_METRIC: u32 = 1024;

/// What an object of the kernel's is to us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen<T> {
    /// Out of our range.
    Elsewhere,
    Foreign(Foreign),
    Stray(Stray),
    Ours(T),
}

pub(in crate::kernel) const fn wire_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// `ip rule show`
pub(super) fn all_rules(family: Family) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = wire_family(family);
    RouteNetlinkMessage::GetRule(message)
}

/// `ip route show table all proto P`
pub(super) fn routes_by_protocol(family: Family, protocol: u8) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = wire_family(family);
    message.header.protocol = protocol.into();
    RouteNetlinkMessage::GetRoute(message)
}

/// `ip route show table T type KIND`; `Unspec` is any kind.
pub(in crate::kernel) fn routes_in_table(
    family: Family,
    table: u32,
    kind: RouteType,
) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = wire_family(family);
    message.header.kind = kind;
    message.attributes.push(RouteAttribute::Table(table));
    RouteNetlinkMessage::GetRoute(message)
}

/// `ip rule add pref N fwmark M/MASK lookup T proto P`, or `goto N`, or `nop` without a mark
pub(super) fn rule_message(rule: &PolicyRule, protocol: u8) -> RuleMessage {
    let PolicyRule { family, priority, mark, mask, action } = *rule;
    let mut message = RuleMessage::default();
    message.header.family = wire_family(family);
    message.attributes =
        vec![RuleAttribute::Priority(priority), RuleAttribute::Protocol(protocol.into())];
    if (mark, mask) != (0, 0) {
        message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    // without an action the kernel takes the rule, and it does nothing
    message.header.action = match action {
        Action::Lookup(table) => {
            message.attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Action::Goto(target) => {
            message.attributes.push(RuleAttribute::Goto(target));
            RuleAction::Goto
        }
        Action::Nop => RuleAction::Nop,
    };
    message
}

/// What the kernel's rule is to us.
pub(super) fn read_rule(
    family: Family,
    message: &RuleMessage,
    owned: &Ownership,
) -> Seen<PolicyRule> {
    let priority = rule_priority(message);
    if message.header.family != wire_family(family) || !owned.priorities().contains(&priority) {
        return Seen::Elsewhere;
    }
    if rule_protocol(message) != Some(owned.protocol()) {
        return Seen::Foreign(Foreign {
            kind: ObjectKind::Rule,
            family,
            place: priority,
            overrides_ours: message.header.action != RuleAction::Nop
                && priority < owned.behind_all(),
            text: describe_rule(message),
        });
    }
    match our_rule(family, priority, message) {
        Some(rule) => Seen::Ours(rule),
        None => Seen::Stray(stray_rule(message)),
    }
}

/// The rule, if it has our form and no more.
fn our_rule(family: Family, priority: u32, message: &RuleMessage) -> Option<PolicyRule> {
    let header = &message.header;
    // a rule to go to that is not there says nothing of the one that goes there
    if header.flags.difference(RuleFlags::Unresolved) != RuleFlags::empty()
        || (header.dst_len, header.src_len, header.tos) != (0, 0, 0)
    {
        return None;
    }
    let (mut mark, mut under, mut table, mut target) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::FwMark(found) => mark = Some(*found),
            RuleAttribute::FwMask(found) => under = Some(*found),
            RuleAttribute::Table(found) => table = Some(*found),
            RuleAttribute::Goto(found) => target = Some(*found),
            // the kernel says so of every rule that suppresses nothing
            RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::Priority(_)
            | RuleAttribute::Protocol(_) => {}
            _ => return None,
        }
    }
    let action = match header.action {
        RuleAction::ToTable => Action::Lookup(table?),
        RuleAction::Goto => Action::Goto(target?),
        RuleAction::Nop => Action::Nop,
        _ => return None,
    };
    match (action, mark, under) {
        (Action::Nop, None, None) => (mark, under) = (Some(0), Some(0)),
        // the kernel leaves a mark of 0 unsaid
        (Action::Goto(_), None, Some(_)) => mark = Some(0),
        (Action::Lookup(_) | Action::Goto(_), Some(_), Some(_)) => {}
        _ => return None,
    }
    Some(PolicyRule { family, priority, mark: mark?, mask: under?, action })
}

/// The priority of a rule; the kernel leaves 0 unsaid.
pub(in crate::kernel) fn rule_priority(message: &RuleMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        })
        .unwrap_or(0)
}

/// The protocol number of a rule.
pub(in crate::kernel) fn rule_protocol(message: &RuleMessage) -> Option<u8> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
        _ => None,
    })
}

/// The kernel deletes the first rule that has what the message names.
pub(super) fn stray_rule(message: &RuleMessage) -> Stray {
    Stray { kind: ObjectKind::Rule, text: describe_rule(message), message: bytes(message) }
}

/// `ip route add default via VIP dev D onlink table T proto P`, or
/// `ip route add unreachable default metric M table T proto P`
pub(super) fn route_message(route: &Route, protocol: u8) -> RouteMessage {
    let Route { family, table, kind } = route;
    let mut message = RouteMessage::default();
    message.header.address_family = wire_family(*family);
    message.header.protocol = protocol.into();
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Table(*table));
    match kind {
        RouteKind::ViaHolder { vip, device } => {
            message.header.kind = RouteType::Unicast;
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(vip.addr().into()));
            message.attributes.push(RouteAttribute::Oif(device.index));
        }
        RouteKind::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    let metric = metric(route);
    if metric != 0 {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

const fn metric(route: &Route) -> u32 {
    match (&route.kind, route.family) {
        (RouteKind::Unreachable, _) => UNREACHABLE_METRIC,
        (RouteKind::ViaHolder { .. }, Family::V4) => 0,
        (RouteKind::ViaHolder { .. }, Family::V6) => V6_METRIC,
    }
}

/// What the kernel's route is to us. `names`: of the devices, by index.
pub(super) fn read_route(
    family: Family,
    message: &RouteMessage,
    owned: &Ownership,
    names: &BTreeMap<u32, String>,
) -> Seen<Route> {
    let table = table_of(message);
    // a kernel without IPv6 answers a question for it with IPv4
    if message.header.address_family != wire_family(family) || !owned.tables().contains(&table) {
        return Seen::Elsewhere;
    }
    if !is_ours_by_protocol(message, owned) {
        return Seen::Foreign(Foreign {
            kind: ObjectKind::Route,
            family,
            place: table,
            overrides_ours: message.header.destination_prefix_length != 0
                || metric_of(message) < UNREACHABLE_METRIC,
            text: describe_route(message),
        });
    }
    match our_route(family, table, message, names) {
        Some(route) => Seen::Ours(route),
        None => Seen::Stray(stray_route(message)),
    }
}

/// Set by the kernel, as the state of a device or its driver changes.
const STATE_FLAGS: RouteFlags = RouteFlags::Dead
    .union(RouteFlags::Linkdown)
    .union(RouteFlags::Offload)
    .union(RouteFlags::Trap)
    .union(RouteFlags::RtOffload)
    .union(RouteFlags::RtTrap)
    .union(RouteFlags::OffloadFailed);

/// The route, if it has our form and no more.
fn our_route(
    family: Family,
    table: u32,
    message: &RouteMessage,
    names: &BTreeMap<u32, String>,
) -> Option<Route> {
    let header = &message.header;
    if (header.destination_prefix_length, header.source_prefix_length, header.tos) != (0, 0, 0)
        || header.scope != RouteScope::Universe
    {
        return None;
    }
    let (mut gateway, mut index) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(addr)) => gateway = Some(IpAddr::V4(*addr)),
            RouteAttribute::Gateway(RouteAddress::Inet6(addr)) => gateway = Some(IpAddr::V6(*addr)),
            RouteAttribute::Oif(found) => index = Some(*found),
            RouteAttribute::CacheInfo(info) if info.expires == 0 => {}
            RouteAttribute::Table(_)
            | RouteAttribute::Priority(_)
            | RouteAttribute::Preference(RoutePreference::Medium) => {}
            _ => return None,
        }
    }
    let flags = header.flags.difference(STATE_FLAGS);
    let kind = match header.kind {
        RouteType::Unicast if flags == RouteFlags::Onlink => {
            let index = index?;
            // without a name the device has just gone, and its route is going
            let name = names.get(&index)?.clone();
            let vip = Vip::try_from(gateway?).ok()?;
            RouteKind::ViaHolder { vip, device: Device { index, name } }
        }
        // IPv6 has them lead to `lo`
        RouteType::Unreachable if flags.is_empty() && gateway.is_none() => RouteKind::Unreachable,
        _ => return None,
    };
    let route = Route { family, table, kind };
    (metric_of(message) == metric(&route)).then_some(route)
}

/// The kernel deletes the first route that has what the message names.
fn stray_route(message: &RouteMessage) -> Stray {
    let text = describe_route(message);
    let mut message = message.clone();
    // the kernel lists what a next hop object is made of, and does not take both back
    if message.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::NhId(_))) {
        message.attributes.retain(|attribute| {
            !matches!(
                attribute,
                RouteAttribute::Gateway(_)
                    | RouteAttribute::Via(_)
                    | RouteAttribute::Oif(_)
                    | RouteAttribute::MultiPath(_)
            )
        });
    }
    Stray { kind: ObjectKind::Route, text, message: bytes(&message) }
}

/// Whether it carries our protocol number.
pub(in crate::kernel) fn is_ours_by_protocol(message: &RouteMessage, owned: &Ownership) -> bool {
    // known numbers are names to the library, so numbers are compared
    u8::from(message.header.protocol) == owned.protocol()
}

/// Whether adding `route` would collide with it, or replace it.
pub(super) fn has_the_place_of(message: &RouteMessage, route: &Route) -> bool {
    message.header.destination_prefix_length == 0
        && message.header.tos == 0
        && metric_of(message) == metric(route)
}

/// The table a route is in.
pub(in crate::kernel) fn table_of(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| message.header.table.into())
}

/// The device a route leads to, if it is one.
pub(in crate::kernel) fn device_of(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// The metric of a route; the lowest wins.
pub(in crate::kernel) fn metric_of(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or(0)
}

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
