use super::*;

const NAMED: [Watch; 4] = [Watch::RouteIds, Watch::Networks, Watch::Candidates, Watch::PodsOfNode];

fn data(key: &str, value: &str) -> Data {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn object(name: &str, key: &str, value: &str) -> BTreeMap<String, Data> {
    BTreeMap::from([(name.to_owned(), data(key, value))])
}

fn texts(batch: Option<Batch>) -> Vec<String> {
    batch.map_or_else(Vec::new, |batch| {
        let texts = batch.changes.iter().map(|Change { object, content }| match content {
            Content::Whole(data) => format!("{object} = {data:?}"),
            other => format!("{object} {other:?}"),
        });
        texts.chain(batch.waiting).collect()
    })
}

/// Everything listed but for the candidates.
fn all_but_candidates() -> Board {
    let board = Board::new("n1", BTreeSet::new(), &NAMED);
    board.listed(Watch::RouteIds, object("vip-routeid-mappings", "192.168.0.1", "7"));
    board.listed(Watch::Networks, BTreeMap::new());
    board.listed(Watch::PodsOfNode, object("podip-vip-mappings-n1", "10.0.0.1", ""));
    board
}

#[test]
fn nothing_is_told_before_everything_was_listed() {
    let board = all_but_candidates();
    board.lost(Watch::Candidates, "refused".to_owned());
    assert_eq!(texts(board.take()), ["waiting for the API server to list vip-candidates: refused"]);
    assert_eq!(texts(board.take()), [""; 0], "said once");
    board.listed(Watch::Candidates, object("vip-candidates", "192.168.0.1", "n2"));
    assert_eq!(
        texts(board.take()),
        [
            "egress-networks Missing",
            "podip-vip-mappings-n1 = {\"10.0.0.1\": \"\"}",
            "vip-candidates = {\"192.168.0.1\": \"n2\"}",
            "vip-routeid-mappings = {\"192.168.0.1\": \"7\"}",
        ]
    );
    assert!(!board.take_wider());
    assert_eq!(texts(board.take()), [""; 0]);
}

#[test]
fn a_node_that_may_hold_vips_waits_for_the_pods_of_others() {
    for candidates in [object("vip-candidates", "192.168.0.1", "n2,n1"), BTreeMap::new()] {
        let board = all_but_candidates();
        board.listed(Watch::Candidates, candidates);
        assert!(board.take_wider());
        assert!(!board.take_wider(), "only once");
        assert_eq!(
            texts(board.take()),
            ["waiting for the API server to list podip-vip-mappings-<other nodes>, \
              vip-blocks-<VIPs>"]
        );
        board.listed(Watch::BlocksOfAll, BTreeMap::new());
        let mut all = object("podip-vip-mappings-n2", "10.0.0.2", "");
        all.append(&mut object("podip-vip-mappings-n1", "10.0.0.1", "stale"));
        board.listed(Watch::PodsOfOthers, all);
        let told = texts(board.take());
        assert_eq!(told[1], "podip-vip-mappings-n1 = {\"10.0.0.1\": \"\"}", "its own watch counts");
        assert_eq!(told[2], "podip-vip-mappings-n2 = {\"10.0.0.2\": \"\"}");
    }
}

#[test]
fn a_node_that_is_no_candidate_waits_for_the_pods_of_others_if_it_holds_a_vip() {
    for holds in [true, false] {
        let own = if holds { ["192.168.0.1".parse().unwrap()].into() } else { BTreeSet::new() };
        let board = Board::new("n1", own, &NAMED);
        let route_ids = object("vip-routeid-mappings", "192.168.0.1", "1");
        board.listed(Watch::RouteIds, route_ids);
        for watch in NAMED.into_iter().filter(|watch| *watch != Watch::RouteIds) {
            board.listed(watch, object("vip-candidates", "192.168.0.1", "n2"));
        }
        assert_eq!(board.take_wider(), holds);
        assert_eq!(board.take().unwrap().waiting.is_some(), holds);
    }
}

#[test]
fn a_node_to_which_a_vip_comes_hears_of_the_pods_of_others_whoever_was_meant_to_hold_it() {
    let board = all_but_candidates();
    board.listed(Watch::Candidates, object("vip-candidates", "192.168.0.1", "n2"));
    drop(board.take());
    assert!(!board.take_wider());
    board.holds();
    assert!(board.take_wider());
    board.holds();
    assert!(!board.take_wider(), "only once");
}

#[test]
fn a_node_that_becomes_a_candidate_later_goes_on_meanwhile_and_never_narrows() {
    let board = all_but_candidates();
    board.listed(Watch::Candidates, object("vip-candidates", "192.168.0.1", "n2"));
    drop(board.take());
    board.changed(Watch::Candidates, "vip-candidates".to_owned(), data("192.168.0.1", "n1"));
    assert!(board.take_wider());
    assert_eq!(texts(board.take()), ["vip-candidates = {\"192.168.0.1\": \"n1\"}"]);
    board.changed(Watch::Candidates, "vip-candidates".to_owned(), data("192.168.0.1", "n2"));
    board.gone(Watch::Candidates, "vip-candidates");
    assert!(!board.take_wider());
    assert_eq!(
        texts(board.take()),
        ["vip-candidates = {\"192.168.0.1\": \"n2\"}", "vip-candidates Missing"]
    );
}

#[test]
fn what_vanished_unheard_is_missing_in_the_next_list() {
    let board = all_but_candidates();
    board.listed(Watch::Candidates, BTreeMap::new());
    let mut others = object("podip-vip-mappings-n2", "10.0.0.2", "");
    others.append(&mut object("podip-vip-mappings-n3", "10.0.0.3", ""));
    board.listed(Watch::PodsOfOthers, others);
    board.listed(Watch::BlocksOfAll, BTreeMap::new());
    drop(board.take());
    board.listed(Watch::PodsOfOthers, object("podip-vip-mappings-n3", "10.0.0.3", ""));
    board.listed(Watch::PodsOfNode, BTreeMap::new());
    assert_eq!(
        texts(board.take()),
        [
            "podip-vip-mappings-n1 Missing",
            "podip-vip-mappings-n2 Missing",
            "podip-vip-mappings-n3 = {\"10.0.0.3\": \"\"}",
        ]
    );
}

#[test]
fn only_the_latest_content_is_told_and_foreign_names_never() {
    let board = all_but_candidates();
    board.listed(Watch::Candidates, object("vip-candidates", "192.168.0.1", "n2"));
    drop(board.take());
    for n in 1..9 {
        let name = "podip-vip-mappings-n1".to_owned();
        board.changed(Watch::PodsOfNode, name, data(&format!("10.0.0.{n}"), ""));
    }
    board.changed(Watch::RouteIds, "podip-vip-mappings-n1".to_owned(), Data::new());
    board.gone(Watch::RouteIds, "podip-vip-mappings-n1");
    assert_eq!(texts(board.take()), ["podip-vip-mappings-n1 = {\"10.0.0.8\": \"\"}"]);
}

const BLOCKS: &str = "vip-blocks-192.168.0.1";

fn blocks() -> Data {
    [("n1", "1 via 192.168.0.11"), ("n2", "2 via 192.168.0.12")]
        .map(|(node, blocks)| (node.to_owned(), blocks.to_owned()))
        .into()
}

#[test]
fn a_node_hears_of_its_own_blocks_and_a_gateway_of_all() {
    let board = Board::new(
        "n1",
        BTreeSet::new(),
        &[Watch::BlocksOfNode, Watch::PodsOfNode, Watch::Candidates],
    );
    board.listed(Watch::PodsOfNode, BTreeMap::new());
    board.listed(Watch::Candidates, object("vip-candidates", "192.168.0.1", "n2"));
    let waits = "waiting for the API server to list vip-blocks-<VIPs of this node>";
    assert_eq!(texts(board.take()), [waits]);
    board.listed(Watch::BlocksOfNode, [(BLOCKS.to_owned(), blocks())].into());
    let own = format!("{BLOCKS} = {{\"n1\": \"1 via 192.168.0.11\"}}");
    assert!(texts(board.take()).contains(&own));
    // It names the node no longer: who watches has asked for what is left of it.
    assert_eq!(board.not_in(Watch::BlocksOfNode, &BTreeMap::new()), [BLOCKS]);
    board.changed(Watch::BlocksOfNode, BLOCKS.to_owned(), data("n2", "2 via 192.168.0.12"));
    assert_eq!(texts(board.take()), [format!("{BLOCKS} = {{}}")]);
    board.gone(Watch::BlocksOfNode, BLOCKS);
    assert_eq!(texts(board.take()), [format!("{BLOCKS} Missing")]);

    board.changed(Watch::Candidates, "vip-candidates".to_owned(), data("192.168.0.1", "n1"));
    assert!(board.take_wider());
    board.listed(Watch::BlocksOfAll, [(BLOCKS.to_owned(), blocks())].into());
    let all = format!("{BLOCKS} = {:?}", blocks());
    assert!(texts(board.take()).contains(&all));
    // The narrow watch is not heard any more.
    board.changed(Watch::BlocksOfNode, BLOCKS.to_owned(), data("n1", "3 via 192.168.0.11"));
    board.gone(Watch::BlocksOfNode, BLOCKS);
    board.listed(Watch::BlocksOfNode, BTreeMap::new());
    assert_eq!(texts(board.take()), [""; 0]);
}
