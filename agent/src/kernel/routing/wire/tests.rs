use netlink_packet_core::Parseable;
use netlink_packet_route::route::{RouteHeader, RouteNextHop};
use proptest::prelude::*;
use shared::RouteId;

use super::*;

fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn any_id() -> impl Strategy<Value = RouteId> {
    (1..=252_u32).prop_map(|id| RouteId::try_from(id).unwrap())
}

fn any_rule() -> impl Strategy<Value = PolicyRule> {
    (any_family(), any_id(), any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |(family, id, mark, mask, number)| PolicyRule {
            family,
            priority: Ownership::default().priority(id),
            mark,
            mask: mask.max(1),
            action: if number % 2 == 0 { Action::Lookup(number) } else { Action::Goto(number) },
        },
    )
}

fn any_vip() -> impl Strategy<Value = Vip> {
    let v4 = any::<u32>().prop_map(|n| IpAddr::from(n.to_be_bytes()));
    let v6 = any::<u128>().prop_map(|n| IpAddr::from(n.to_be_bytes()));
    prop_oneof![v4, v6].prop_filter_map("an address that can be a VIP", |ip| ip.try_into().ok())
}

fn any_route() -> impl Strategy<Value = Route> {
    let owned = Ownership::default();
    prop_oneof![
        (any_vip(), any_id(), 1..99_u32).prop_map(move |(vip, id, index)| {
            owned.route_to_holder(vip, id, Device { index, name: format!("if{index}") })
        }),
        (any_family(), any_id()).prop_map(move |(family, id)| owned.unreachable(family, id)),
    ]
}

fn names() -> BTreeMap<u32, String> {
    (1..99).map(|index| (index, format!("if{index}"))).collect()
}

proptest! {
    #[test]
    fn a_rule_survives_the_wire(rule in any_rule()) {
        let owned = Ownership::default();
        let sent = bytes(&rule_message(&rule, owned.protocol()));
        let got = RuleMessage::parse(sent.as_slice()).unwrap();
        prop_assert_eq!(read_rule(rule.family, &got, &owned), Seen::Ours(rule));
    }

    #[test]
    fn a_route_survives_the_wire(route in any_route()) {
        let owned = Ownership::default();
        let sent = bytes(&route_message(&route, owned.protocol()));
        let got = RouteMessage::parse(sent.as_slice()).unwrap();
        prop_assert_eq!(read_route(route.family, &got, &owned, &names()), Seen::Ours(route));
    }

    #[test]
    fn nothing_of_another_protocol_is_ours(rule in any_rule(), route in any_route(), other: u8) {
        let owned = Ownership::default();
        prop_assume!(other != owned.protocol());
        let rule_seen = read_rule(rule.family, &rule_message(&rule, other), &owned);
        prop_assert!(matches!(rule_seen, Seen::Foreign(_)));
        let route_seen = read_route(route.family, &route_message(&route, other), &owned, &names());
        prop_assert!(matches!(route_seen, Seen::Foreign(_)));
    }

    #[test]
    fn nothing_out_of_our_ranges_is_ours(rule in any_rule(), route in any_route()) {
        let owned = Ownership::default();
        let elsewhere = Ownership::new(owned.protocol(), 2000, 20_000, owned.marks()).unwrap();
        let message = rule_message(&rule, owned.protocol());
        prop_assert_eq!(read_rule(rule.family, &message, &elsewhere), Seen::Elsewhere);
        let message = route_message(&route, owned.protocol());
        let seen = read_route(route.family, &message, &elsewhere, &names());
        prop_assert_eq!(seen, Seen::Elsewhere);
    }
}

#[test]
fn somebody_elses_rule_behind_all_of_ours_is_in_nobodys_way() {
    let owned = Ownership::default();
    let mut rule = owned.rule(Family::V4, RouteId::MAX);
    for overrides in [true, false] {
        let seen = read_rule(Family::V4, &rule_message(&rule, 4), &owned);
        assert!(matches!(&seen, Seen::Foreign(it) if it.overrides_ours == overrides), "{seen:?}");
        rule.priority += 1;
    }
}

#[test]
fn a_goto_whose_target_is_missing_is_still_ours() {
    let owned = Ownership::default();
    for rule in owned.shortcuts(Family::V6, RouteId::all()) {
        let mut message = rule_message(&rule, owned.protocol());
        // as the kernel lists them
        message.header.flags |= RuleFlags::Unresolved;
        message.attributes.retain(|attribute| *attribute != RuleAttribute::FwMark(0));
        message
            .attributes
            .extend([RuleAttribute::Table(0), RuleAttribute::SuppressPrefixLen(u32::MAX)]);
        assert_eq!(read_rule(Family::V6, &message, &owned), Seen::Ours(rule));
    }
}

fn a_route() -> Route {
    let vip = "192.0.2.1".parse().unwrap();
    let device = Device { index: 7, name: "if7".to_owned() };
    Ownership::default().route_to_holder(vip, RouteId::MIN, device)
}

#[test]
fn a_route_whose_device_is_gone_is_a_stray() {
    let owned = Ownership::default();
    let message = route_message(&a_route(), owned.protocol());
    let seen = read_route(Family::V4, &message, &owned, &BTreeMap::new());
    assert!(matches!(seen, Seen::Stray(_)), "{seen:?}");
}

#[test]
fn a_state_of_the_device_makes_no_other_route() {
    let owned = Ownership::default();
    let mut message = route_message(&a_route(), owned.protocol());
    message.header.flags |= RouteFlags::Linkdown | RouteFlags::Dead;
    assert_eq!(read_route(Family::V4, &message, &owned, &names()), Seen::Ours(a_route()));
}

#[test]
fn a_table_below_256_is_in_the_header() {
    let mut message = RouteMessage::default();
    message.header = RouteHeader { table: 254, ..RouteHeader::default() };
    assert_eq!(table_of(&message), 254);
}

#[test]
fn a_next_hop_object_is_deleted_by_its_number_alone() {
    let owned = Ownership::default();
    let mut message = route_message(&a_route(), owned.protocol());
    message.attributes.push(RouteAttribute::NhId(5));
    message.attributes.push(RouteAttribute::MultiPath(vec![RouteNextHop::default()]));
    let stray = stray_route(&message);
    let read = RouteMessage::parse(stray.message.as_slice()).unwrap();
    assert_eq!(
        read.attributes,
        [RouteAttribute::Table(10_001), RouteAttribute::NhId(5)],
        "{stray}"
    );
}
