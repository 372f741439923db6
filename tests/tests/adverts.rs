//! What keepalived says on the wire: adverts to a group or to each node, and where VIPs are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::{
    Family, Fault, Gateways, Host, Lab, Launcher, MappingsDir, NeighbourNews, Witness, eventually,
    vip, wait_until,
};

const RATE: u32 = 200;
/// How soon all traffic has to flow again on a crowded machine, TCP's back-off included.
const SOON: Duration = Duration::from_secs(8);
const LONG: Duration = Duration::from_mins(1);
/// keepalived tells where each VIP is so often.
const REFRESHED_EVERY: Duration = Duration::from_secs(10);

fn mac(host: &Host) -> String {
    Lab::lan_mac(host).map(|byte| format!("{byte:02x}")).join(":")
}

fn gained(gateways: &mut Gateways) -> Result<f64> {
    (1..=3).map(|node| gateways.launcher(node)?.metric("vips_gained_total")).sum()
}

#[test]
fn adverts_go_to_each_gateway_where_the_network_has_no_multicast() -> Result<()> {
    let arguments = ["--advert-interval-ms", "100", "--adverts", "unicast"];
    let mut gateways = Gateways::start(&arguments)?;
    // A switch that has forgotten where a node is sends to every port what is for it.
    let to_groups = "(ip proto 112 and ip multicast) or (ip6 proto 112 and ip6 multicast)";
    let witness = Witness::on(gateways.cluster.lab.outside(), to_groups)?;
    let peer = Witness::on(gateways.cluster.lab.node(2), "ip proto 112 or ip6 proto 112")?;
    let adverts = peer.lines(10, SOON).join("\n");
    let [v4, v6] = Family::ALL.map(|family| {
        let [from, to] = [1, 2].map(|node| gateways.cluster.lab.node(node).ip(family));
        format!("{from} > {to}: VRRPv3, Advertisement")
    });
    assert!(adverts.contains(&v4) && adverts.contains(&v6), "{adverts}");

    // A node goes and is no longer named, comes back and is: nobody else notices.
    let watch = gateways.watch(Family::V4, &[1, 2, 3], RATE)?;
    let before = gained(&mut gateways)?;
    gateways.launcher(3)?.stop()?;
    let reloads = |gateways: &mut Gateways| -> Result<Vec<f64>> {
        [1, 2].map(|node| gateways.launcher(node)?.metric("reloads_total")).into_iter().collect()
    };
    let earlier = reloads(&mut gateways)?;
    gateways.name(&[1, 2])?;
    let is_one_more = |(now, earlier): (&f64, &f64)| now > earlier;
    assert!(wait_until(SOON, || {
        reloads(&mut gateways).is_ok_and(|now| now.iter().zip(&earlier).all(is_one_more))
    }));
    gateways.name(&[1, 2, 3])?;
    gateways.launcher(3)?.start_again()?;
    gateways.await_settled()?;
    watch.goes_on(SOON)?;
    assert_eq!(gateways.holders()?, [1, 1]);
    let again = gained(&mut gateways)?;
    assert_eq!(again.to_bits(), before.to_bits(), "no VIP has moved");
    let outcome = watch.finish()?;
    outcome.is_clean()?;
    assert_eq!(outcome.lost(), 0);

    // One that is not named, by mistake or before its time, holds nothing.
    gateways.name(&[1, 2])?;
    let launcher = gateways.launcher(3)?;
    assert!(wait_until(SOON, || launcher.metric("faults").is_ok_and(|faults| faults > 0.5)));
    assert!(launcher.log().contains("does not name this node"), "{}", launcher.log());
    assert!(launcher.keepalived().is_none());
    gateways.name(&[1, 2, 3])?;
    gateways.await_settled()?;

    // The holder is lost, and one that is emptied.
    for fault in [Fault::Unplugged, Fault::Drained] {
        let holder = gateways.holder()?;
        gateways.await_settled()?;
        let nodes: Vec<usize> =
            (1..=3).filter(|node| !fault.cuts_off() || *node != holder).collect();
        let watch = gateways.watch(Family::V4, &nodes, RATE)?;
        gateways.strike(fault, holder)?;
        assert!(wait_until(SOON, || gateways.holders().is_ok_and(|now| !now.contains(&holder))));
        watch.goes_on(SOON)?;
        gateways.mend(fault, holder)?;
        watch.goes_on(SOON)?;
        let outcome = watch.finish()?;
        outcome.is_clean()?;
        println!(
            "unicast, {fault:?}: {} ms, {} lost",
            outcome.outage().as_millis(),
            outcome.lost()
        );
    }

    // The last of three.
    gateways.launcher(1)?.stop()?;
    gateways.launcher(2)?.stop()?;
    gateways.await_holder(3)?;
    assert_eq!(witness.lines(1, Duration::ZERO), [""; 0], "no advert goes to a group");
    Ok(())
}

#[test]
fn adverts_each_200_ms_cost_less_than_a_second() -> Result<()> {
    let mut gateways = Gateways::start(&["--advert-interval-ms", "200"])?;
    for family in Family::ALL {
        let holder = gateways.holder()?;
        gateways.await_settled()?;
        let others: Vec<usize> = (1..=3).filter(|node| *node != holder).collect();
        let watch = gateways.watch(family, &others, RATE)?;
        gateways.strike(Fault::Unplugged, holder)?;
        assert!(wait_until(SOON, || gateways.holders().is_ok_and(|now| !now.contains(&holder))));
        watch.goes_on(SOON)?;
        gateways.mend(Fault::Unplugged, holder)?;
        let outcome = watch.finish()?;
        outcome.is_clean()?;
        let outage = outcome.outage();
        println!("adverts each 200 ms, {family:?}: {} ms", outage.as_millis());
        // 0.4 to 0.8 s on a quiet machine; adverts each second would cost two or three.
        assert!((Duration::from_millis(400)..Duration::from_secs(2)).contains(&outage));
    }
    Ok(())
}

#[test]
fn a_third_host_is_told_of_the_new_holder_and_the_old_one_says_nothing_when_it_is_back()
-> Result<()> {
    let mut gateways = Gateways::start(&["--advert-interval-ms", "100"])?;
    let lab = &gateways.cluster.lab;
    let outside = lab.outside().clone();
    let macs: Vec<String> = lab.nodes().iter().map(mac).collect();
    for vip in Gateways::vips() {
        let known = &macs[0];
        outside.sh(&format!("ip neigh replace {vip} lladdr {known} dev eth0 nud stale"))?;
    }
    let witness = Witness::of_neighbours(&outside)?;

    // It sends nothing, so it has no reason to ask.
    gateways.strike(Fault::Unplugged, 1)?;
    let entry = |vip: &IpAddr| outside.sh(&format!("ip neigh show {vip}")).unwrap_or_default();
    for vip in Gateways::vips() {
        eventually(SOON, || macs[1..].iter().any(|mac| entry(&vip).contains(mac)));
    }
    let holders = gateways.holders()?;
    let told = witness.neighbour_news();
    for (vip, holder) in Gateways::vips().into_iter().zip(holders) {
        let about: Vec<&NeighbourNews> = told.iter().filter(|news| news.about == vip).collect();
        assert!(!about.iter().any(|news| news.asks && news.from == mac(&outside)), "{about:?}");
        assert!(about.iter().any(|news| !news.asks && news.from == macs[holder - 1]), "{about:?}");
    }

    // The old holder is back, and silent of them, for longer than it would take to tell again.
    gateways.mend(Fault::Unplugged, 1)?;
    thread::sleep(REFRESHED_EVERY + Duration::from_secs(2));
    assert_eq!(gateways.holders()?, holders);
    let told = witness.neighbour_news();
    for vip in Gateways::vips() {
        let from: Vec<&str> = told
            .iter()
            .filter(|news| news.about == vip && !news.asks)
            .map(|news| news.from.as_str())
            .collect();
        // Each ten seconds, and for adverts of the old one, which knew of nobody for a moment.
        assert!(!from.is_empty() && from.len() <= 10, "told too often: {from:?}");
        assert!(!from.contains(&macs[0].as_str()), "the old holder speaks of {vip}: {from:?}");
        assert!(macs[1..].iter().any(|mac| entry(&vip).contains(mac)));
    }
    Ok(())
}

/// Beside the nodes' own addresses a subnet of 256 has no room for so many: the last 102 are IPv6.
fn crowd() -> impl Iterator<Item = (IpAddr, u8)> {
    let address = |id: u8| if id <= 150 { vip(Family::V4, id + 100) } else { vip(Family::V6, id) };
    (1..=252).map(move |id| (address(id), id))
}

struct Crowd {
    lab: Lab,
    mappings: MappingsDir,
    launchers: Vec<Launcher>,
}

impl Crowd {
    /// 251 VIPs on three nodes.
    fn gather(arguments: &[&str]) -> Result<Self> {
        let lab = Lab::builder().nodes(3).pods_per_node(0).build()?;
        let mut mappings = MappingsDir::of(&lab)?;
        let addresses = lab.nodes().iter().flat_map(|node| Family::ALL.map(|of| node.ip(of)));
        let list: Vec<String> = addresses.map(|address| address.to_string()).collect();
        mappings.set("egress-networks", "gateway-addresses", &list.join(","))?;
        let mut crowd = Self { mappings, lab, launchers: Vec::new() };
        for (number, (vip, id)) in self::crowd().enumerate().take(251) {
            crowd.add(number, vip, id)?;
        }
        let arguments = [arguments, &["--agent-url", ""]].concat();
        for node in crowd.lab.nodes() {
            crowd.launchers.push(Launcher::start(node, &crowd.mappings, &arguments)?);
        }
        let settled = || crowd.lab.held().iter().sum::<usize>() == 251;
        let all = || settled() && crowd.launchers.iter().all(Launcher::holds_for_good);
        assert!(wait_until(LONG, all), "{:?}", crowd.lab.held());
        Ok(crowd)
    }

    fn add(&mut self, number: usize, vip: IpAddr, id: u8) -> Result<()> {
        let key = vip.to_string().replace(':', "-");
        let nodes: Vec<String> =
            (0..3).map(|rank| format!("n{}", (number + rank) % 3 + 1)).collect();
        self.mappings.set("vip-candidates", &key, &nodes.join(","))?;
        self.mappings.set_vip(vip, id)
    }
}

/// How often each VIP was announced, and by whom.
fn announced(news: &[NeighbourNews]) -> BTreeMap<IpAddr, BTreeMap<String, usize>> {
    let mut counts: BTreeMap<IpAddr, BTreeMap<String, usize>> = BTreeMap::new();
    for NeighbourNews { from, about, .. } in news.iter().filter(|news| !news.asks) {
        *counts.entry(*about).or_default().entry(from.clone()).or_default() += 1;
    }
    counts
}

#[test]
fn at_252_vips_a_reload_and_a_failover_tell_of_every_vip_soon_and_not_too_often() -> Result<()> {
    let mut crowd = Crowd::gather(&["--advert-interval-ms", "200"])?;
    let witness = Witness::of_neighbours(crowd.lab.outside())?;

    // One more: the others are told of as they are each ten seconds, no more.
    let (number, (new, id)) = self::crowd().enumerate().last().unwrap();
    let start = Instant::now();
    crowd.add(number, new, id)?;
    assert!(wait_until(LONG, || !crowd.lab.holders(new).is_empty()));
    thread::sleep(Duration::from_secs(3));
    let news = announced(&witness.neighbour_news());
    let rounds = start.elapsed().as_secs() / REFRESHED_EVERY.as_secs() + 1;
    let frames: usize = news.values().flat_map(BTreeMap::values).sum();
    println!("one more of 252: {frames} announcements in {:.1} s", start.elapsed().as_secs_f64());
    assert!(news.contains_key(&new));
    for (vip, from) in news.iter().filter(|(vip, _)| **vip != new) {
        assert!(from.len() == 1 && from.values().all(|&n| n as u64 <= rounds), "{vip}: {from:?}");
    }

    // A node is lost: each of its VIPs is told of at once, twice, by one other.
    let lost: Vec<IpAddr> =
        self::crowd().map(|(vip, _)| vip).filter(|vip| crowd.lab.holders(*vip) == [1]).collect();
    assert!((83..=85).contains(&lost.len()), "{}", lost.len());
    drop(witness.neighbour_news());
    let start = Instant::now();
    crowd.lab.unplug(1)?;
    let mut seen = Vec::new();
    let told_of_all = || {
        seen.extend(witness.neighbour_news());
        let told = announced(&seen);
        let others = |vip: &IpAddr| told.get(vip).is_some_and(|from| !from.is_empty());
        lost.iter().all(others)
    };
    assert!(wait_until(SOON, told_of_all), "not all are told of");
    println!("84 of 252 lost: all told of after {} ms", start.elapsed().as_millis());
    thread::sleep(Duration::from_secs(3));
    seen.extend(witness.neighbour_news());
    let news = announced(&seen);
    let rounds = usize::try_from(start.elapsed().as_secs() / REFRESHED_EVERY.as_secs() + 1)?;
    let frames: usize = news.values().flat_map(BTreeMap::values).sum();
    println!("84 of 252 lost: {frames} announcements in {:.1} s", start.elapsed().as_secs_f64());
    for vip in &lost {
        let from = &news[vip];
        // Two may have been masters for a moment.
        assert!(from.len() <= 2 && from.values().all(|&n| n <= 2 + rounds), "{vip}: {from:?}");
    }
    assert!(frames <= 252 * rounds + lost.len() * 4, "{frames}");
    Ok(())
}

#[test]
fn at_252_vips_a_gateway_that_is_gone_does_not_keep_adverts_from_the_others() -> Result<()> {
    let crowd = Crowd::gather(&["--advert-interval-ms", "100", "--adverts", "unicast"])?;
    let gained = || -> Result<f64> {
        let others = crowd.launchers.iter().skip(1);
        others.map(|launcher| launcher.metric("vips_gained_total")).sum()
    };
    let held_by_others = || crowd.lab.held()[1..].iter().sum::<usize>();
    let (had, before) = (held_by_others(), gained()?);
    crowd.lab.unplug(1)?;
    assert!(wait_until(LONG, || held_by_others() == 251), "{:?}", crowd.lab.held());
    // A launcher counts what it has gained a moment after the address is there.
    let come = f64::from(u32::try_from(251 - had)?);
    assert!(wait_until(LONG, || gained().is_ok_and(|now| now > before + come - 0.5)));
    let before = gained()?;
    thread::sleep(Duration::from_secs(20));
    let moved = gained()? - before;
    println!("unicast, 252 VIPs, one of three is gone: {moved} moves in 20 s");
    for (node, launcher) in crowd.launchers.iter().enumerate().skip(1) {
        let text = launcher.log();
        let failed = text.lines().filter(|line| line.contains("Cant send advert")).count();
        println!("n{}: {failed} adverts could not be sent", node + 1);
    }
    assert!(moved < 0.5, "{moved}");
    Ok(())
}
