use std::time::Instant;

use serde_json::{Value, json};
use shared::{RouteId, Vip};

use super::*;
use crate::kernel::scratch_netns::{in_scratch_netns, json, run};
use crate::routing::{Device, RouteKind};

fn id(number: u32) -> RouteId {
    RouteId::try_from(number).unwrap()
}

fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

fn index_of(name: &str) -> u32 {
    let links = json(&format!("ip -j link show {name}"));
    links[0]["ifindex"].as_u64().unwrap().try_into().unwrap()
}

/// `left` and `right` are joined and up; `left` has `192.0.2.10/24` and `fd00::10/64`.
fn uplink() -> Device {
    run("ip link add left type veth peer name right");
    run("ip addr add 192.0.2.10/24 dev left; ip -6 addr add fd00::10/64 dev left nodad");
    run("ip link set left up; ip link set right up");
    Device { index: index_of("left"), name: "left".to_owned() }
}

fn routing() -> Routing {
    Routing::new(RouteSocket::open().unwrap(), Ownership::default())
}

fn routes_of(device: &Device, number: u32) -> [Route; 4] {
    let owned = Ownership::default();
    [
        owned.route_to_holder(vip("192.0.2.77"), id(number), device.clone()),
        owned.unreachable(Family::V4, id(number)),
        owned.route_to_holder(vip("fd00::77"), id(number), device.clone()),
        owned.unreachable(Family::V6, id(number)),
    ]
}

fn rules_of(number: u32) -> [PolicyRule; 2] {
    Family::ALL.map(|family| Ownership::default().rule(family, id(number)))
}

#[test]
fn rules_and_routes_are_those_that_ip_lists() {
    in_scratch_netns(|| async {
        let device = uplink();
        let routing = routing();
        let (routes, rules) = (routes_of(&device, 64), rules_of(64));
        assert!(routing.add_routes(&routes).await.is_empty());
        assert!(routing.add_rules(&rules).await.is_empty());

        for family in ["-4", "-6"] {
            let listed = json(&format!("ip -N {family} -j rule show pref 1064"));
            let want = json!([{
                "priority": 1064, "src": "all", "fwmark": "0x1040", "fwmask": "0x10ff",
                "table": "10064", "protocol": "69",
            }]);
            assert_eq!(Value::from(listed), want, "{family}");
        }
        assert_eq!(
            run("ip route show table 10064"),
            "default via 192.0.2.77 dev left proto 69 onlink \n\
             unreachable default proto 69 metric 4278198272 \n"
        );
        assert_eq!(
            run("ip -6 route show table 10064"),
            "default via fd00::77 dev left proto 69 metric 1024 onlink pref medium\n\
             unreachable default dev lo proto 69 metric 4278198272 pref medium\n"
        );

        let observed = routing.observe().await.unwrap();
        assert_eq!(
            observed,
            ObservedRouting {
                rules: rules.into(),
                routes: routes.clone().into(),
                ..ObservedRouting::default()
            }
        );

        // once more changes nothing
        assert!(routing.add_routes(&routes).await.is_empty());
        assert!(routing.add_rules(&rules).await.is_empty());
        assert_eq!(routing.observe().await.unwrap(), observed);

        for _ in 0..2 {
            for rule in &rules {
                routing.del_rule(rule).await.unwrap();
            }
            for route in &routes {
                routing.del_route(route).await.unwrap();
            }
        }
        assert_eq!(routing.observe().await.unwrap(), ObservedRouting::default());
        assert_eq!(run("ip rule show pref 1064; ip -6 rule show pref 1064"), "");
    });
}

#[test]
fn shortcuts_are_those_that_ip_lists_and_do_not_need_their_targets() {
    in_scratch_netns(|| async {
        let routing = routing();
        let (owned, ids) = (Ownership::default(), [id(1), id(64), id(200)]);
        let rules: BTreeSet<PolicyRule> =
            Family::ALL.into_iter().flat_map(|family| owned.shortcuts(family, ids)).collect();
        assert!(routing.add_rules(&rules).await.is_empty());
        for (family, ip) in Family::ALL.into_iter().zip(["-4", "-6"]) {
            let listed = run(&format!("ip -N {ip} rule show | grep 'proto 69'"));
            let listed: Vec<String> =
                listed.lines().map(|l| l.replace('\t', " ").trim_end().to_owned()).collect();
            let want: Vec<String> = rules
                .iter()
                .filter(|rule| rule.family == family)
                .map(|rule| format!("{rule} proto 69"))
                .collect();
            assert_eq!(listed, want, "{ip}");
            assert_eq!(listed[0], "1000: from all fwmark 0/0x1000 goto 1253 proto 69");
        }
        // once more changes nothing
        assert!(routing.add_rules(&rules).await.is_empty());
        let wanted = ObservedRouting { rules: rules.clone(), ..ObservedRouting::default() };
        assert_eq!(routing.observe().await.unwrap(), wanted);

        let (ways, targets): (BTreeSet<_>, BTreeSet<_>) =
            rules.iter().copied().partition(PolicyRule::is_shortcut);
        for target in &targets {
            routing.del_rule(target).await.unwrap();
        }
        assert!(run("ip rule").contains("goto 1253 [unresolved]"));
        let seen = routing.observe().await.unwrap();
        assert_eq!(seen.rules, ways);
        assert!(seen.strays.is_empty(), "{:?}", seen.strays);
        assert!(routing.add_rules(&targets).await.is_empty());
        assert!(!run("ip rule; ip -6 rule").contains("unresolved"));

        for rule in &rules {
            routing.del_rule(rule).await.unwrap();
        }
        assert_eq!(routing.observe().await.unwrap(), ObservedRouting::default());
    });
}

#[test]
fn packets_reach_their_own_table_past_all_others() {
    in_scratch_netns(|| async {
        let device = uplink();
        run("ip route add default via 192.0.2.1 dev left");
        let routing = routing();
        let owned = Ownership::default();
        let ids: Vec<_> = RouteId::all().collect();
        let rules: BTreeSet<PolicyRule> = ids
            .iter()
            .map(|id| owned.rule(Family::V4, *id))
            .chain(owned.shortcuts(Family::V4, ids.iter().copied()))
            .collect();
        assert!(routing.add_rules(&rules).await.is_empty());
        let routes: Vec<Route> = ids
            .iter()
            .map(|id| {
                let holder =
                    format!("192.0.2.{}", if id.number() == 10 { 253 } else { id.number() });
                owned.route_to_holder(vip(&holder), *id, device.clone())
            })
            .collect();
        assert!(routing.add_routes(&routes).await.is_empty());
        let way = |mark: u32| run(&format!("ip route get 198.51.100.1 mark {mark:#x}"));
        for (id, route) in ids.iter().zip(&routes) {
            let RouteKind::ViaHolder { vip, .. } = route.kind else { panic!("{route}") };
            let away = way(owned.marks().away(*id) | 0x4000);
            assert!(away.contains(&format!("via {vip} dev left table")), "{away}");
            let here = way(owned.marks().here(*id) | 0x4000);
            assert!(here.contains("via 192.0.2.1 dev left"), "{here}");
        }
    });
}

#[test]
fn another_uplink_takes_the_place_of_the_first_without_a_gap() {
    in_scratch_netns(|| async {
        let left = uplink();
        let right = Device { index: index_of("right"), name: "right".to_owned() };
        let routing = routing();
        assert!(routing.add_routes(&routes_of(&left, 1)).await.is_empty());
        // IPv6 takes no gateway that table main has behind another device
        run("ip -6 addr del fd00::10/64 dev left; ip -6 addr add fd00::10/64 dev right nodad");
        assert!(routing.add_routes(&routes_of(&right, 1)).await.is_empty());
        let observed = routing.observe().await.unwrap();
        assert_eq!(observed.routes, routes_of(&right, 1).into());
        assert!(observed.strays.is_empty());
    });
}

#[test]
fn routes_to_a_vip_of_this_node_are_refused_but_stay() {
    in_scratch_netns(|| async {
        let device = uplink();
        let routing = routing();
        let addresses = "192.0.2.77/32 fd00::77/128";
        let each =
            |verb: &str| format!("for a in {addresses}; do ip addr {verb} $a dev left; done");
        run(&each("add"));
        for route in routes_of(&device, 64).iter().filter(|route| !route.is_unreachable()) {
            match routing.add_route(route).await {
                Err(RoutingError::AddRoute { source, .. }) => {
                    assert_eq!(source.errno(), Some(Errno::EINVAL as i32));
                }
                other => panic!("{other:?}"),
            }
        }
        run(&each("del"));
        assert!(routing.add_routes(&routes_of(&device, 64)).await.is_empty());
        run(&each("add"));
        assert_eq!(routing.observe().await.unwrap().routes, routes_of(&device, 64).into());
    });
}

#[test]
fn the_unreachable_defaults_survive_a_link_that_goes_down() {
    in_scratch_netns(|| async {
        let device = uplink();
        let routing = routing();
        assert!(routing.add_routes(&routes_of(&device, 64)).await.is_empty());
        run("ip link set right down"); // no carrier: the routes stay
        assert_eq!(routing.observe().await.unwrap().routes, routes_of(&device, 64).into());
        run("ip link set left down");
        let left = routing.observe().await.unwrap().routes;
        assert_eq!(left.len(), 2);
        assert!(left.iter().all(Route::is_unreachable));
    });
}

#[test]
fn what_is_ours_but_of_another_form_is_deleted_and_nothing_else() {
    in_scratch_netns(|| async {
        let device = uplink();
        let routing = routing();
        let (routes, rules) = (routes_of(&device, 64), rules_of(64));
        assert!(routing.add_routes(&routes).await.is_empty());
        assert!(routing.add_rules(&rules).await.is_empty());
        run("ip route add default via 192.0.2.1 dev left table 10064 metric 5 proto 69");
        run("ip route add 198.51.100.0/24 via 192.0.2.1 dev left table 10064 proto 69 mtu 1400");
        run("ip route add blackhole default table 10070 proto 69");
        run("ip route add default table 10071 proto 69 nexthop via 192.0.2.1 dev left \
             nexthop via 192.0.2.2 dev left");
        run("ip nexthop add id 9 via 192.0.2.3 dev left");
        run("ip route add default table 10072 proto 69 nhid 9");
        run("ip -6 route add default via fd00::1 dev left table 10064 metric 7 proto 69");
        run("ip -6 route add fd01::/64 via fd00::1 dev left table 10064 proto 69");
        run("ip rule add pref 1064 iif left lookup 10064 proto 69");
        run("ip rule add pref 1065 not fwmark 0x1041/0x10ff lookup 10065 proto 69");
        run("ip rule add pref 1066 fwmark 0x1042/0x10ff blackhole proto 69");
        run("ip -6 rule add pref 1064 from fd02::/64 lookup 10064 proto 69");
        let foreign = [
            "ip route add 203.0.113.0/24 via 192.0.2.1 dev left table 10064 proto 4",
            "ip -6 route add fd03::/64 via fd00::1 dev left table 10064 proto 4",
            "ip rule add pref 1099 fwmark 7 lookup 9 proto 4",
            "ip -6 rule add pref 1099 fwmark 7 lookup 9",
        ];
        let out_of_range = [
            "ip route add 203.0.113.0/24 via 192.0.2.1 dev left table 77 proto 69",
            "ip rule add pref 77 fwmark 7 lookup 9 proto 69",
            "ip -6 rule add pref 1254 fwmark 7 lookup 9 proto 69",
        ];
        for line in foreign.iter().chain(&out_of_range) {
            run(line);
        }

        let observed = routing.observe().await.unwrap();
        assert_eq!(observed.rules, rules.into());
        assert_eq!(observed.routes, routes.clone().into());
        let strays: Vec<String> = observed.strays.iter().map(ToString::to_string).collect();
        assert_eq!(strays.len(), 11, "{strays:#?}");
        assert_eq!(observed.foreign.len(), foreign.len(), "{:#?}", observed.foreign);
        assert!(observed.foreign.iter().all(|foreign| foreign.overrides_ours));
        for stray in &observed.strays {
            routing.del_stray(stray).await.unwrap();
        }

        let again = routing.observe().await.unwrap();
        assert!(again.strays.is_empty(), "{:#?}", again.strays);
        assert_eq!(again, ObservedRouting { strays: BTreeSet::new(), ..observed });
        assert!(run("ip route show table 77").contains("203.0.113.0/24"));
        assert!(run("ip rule show pref 77; ip -6 rule show pref 1254").contains("77:"));
    });
}

#[test]
fn a_route_of_somebody_else_is_not_replaced_and_a_rule_stands_beside() {
    in_scratch_netns(|| async {
        let device = uplink();
        let routing = routing();
        run("ip route add default via 192.0.2.1 dev left table 10064 proto 4");
        run("ip -6 route add default via fd00::1 dev left table 10064 proto 4");
        run("ip rule add pref 1064 fwmark 0x1040/0x10ff lookup 10064 proto 4");
        run("ip -6 rule add pref 1064 fwmark 0x1040/0x10ff lookup 10064 proto 4");
        let before = run("ip route show table 10064; ip rule; ip -6 rule");
        let routes = routes_of(&device, 64);
        let failed =
            routing.add_routes(routes.iter().filter(|route| !route.is_unreachable())).await;
        assert!(
            matches!(
                failed.as_slice(),
                [RoutingError::RouteIsForeign { .. }, RoutingError::RouteIsForeign { .. }]
            ),
            "{failed:?}"
        );
        assert_eq!(run("ip route show table 10064; ip rule; ip -6 rule"), before);
        assert!(routing.add_rules(&rules_of(64)).await.is_empty());
        let observed = routing.observe().await.unwrap();
        assert!(observed.routes.is_empty() && observed.strays.is_empty());
        assert_eq!(observed.rules, rules_of(64).into());
        assert_eq!(observed.foreign.len(), 4, "{:#?}", observed.foreign);
    });
}

#[test]
fn a_second_rule_just_like_ours_is_a_stray() {
    in_scratch_netns(|| async {
        let routing = routing();
        let rule = rules_of(64)[0];
        let message = RouteNetlinkMessage::NewRule(wire::rule_message(&rule, 69));
        for _ in 0..2 {
            routing.socket.change(message.clone(), NLM_F_CREATE).await.unwrap();
        }
        let observed = routing.observe().await.unwrap();
        assert_eq!((observed.rules.len(), observed.strays.len()), (1, 1));
        routing.del_stray(observed.strays.first().unwrap()).await.unwrap();
        let observed = routing.observe().await.unwrap();
        assert_eq!((observed.rules.len(), observed.strays.len()), (1, 0));
    });
}

#[test]
fn every_route_id_of_both_families_fits() {
    in_scratch_netns(|| async {
        let device = uplink();
        let routing = routing();
        let routes: Vec<Route> = (1..=252).flat_map(|id| routes_of(&device, id)).collect();
        let rules: Vec<PolicyRule> = (1..=252).flat_map(rules_of).collect();
        let start = Instant::now();
        assert!(routing.add_routes(&routes).await.is_empty());
        assert!(routing.add_rules(&rules).await.is_empty());
        let added = start.elapsed();
        let observed = routing.observe().await.unwrap();
        let both = start.elapsed();
        println!("1512 added in {added:?}, and read after {both:?}");
        assert_eq!(observed.routes, routes.into_iter().collect());
        assert_eq!(observed.rules, rules.into_iter().collect());
        assert!(observed.strays.is_empty() && observed.foreign.is_empty());
    });
}

#[test]
fn a_socket_whose_task_has_ended_says_so() {
    in_scratch_netns(|| async {
        let routing = routing();
        routing.socket.close_for_test();
        let outcome = routing.observe().await;
        assert!(matches!(outcome, Err(RoutingError::Observe(RequestError::Lost))), "{outcome:?}");
    });
}
