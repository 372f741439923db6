//! Whatever happens in whatever order, no two nodes may use one block.
//!
//! What a node may use is what its agent believes and what its connections have, not what is published.

mod model;

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use self::model::Model;

const NODES: usize = 4;
const NAMES: [&str; NODES] = ["n0", "n1", "n2", "n3"];

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A replica sees that many more writes.
    See(usize, u64),
    /// A replica decides, and sends what is to be written.
    Pass(usize),
    /// A request arrives.
    Arrive(usize),
    /// A replica waits no longer for its answers.
    GiveUp(usize),
    Restart(usize),
    /// A replica sees all, decides and writes, with nothing in between.
    Work(usize),
    /// An agent reads that many more versions.
    Hear(usize, usize),
    Connect(usize, usize),
    Close(usize, usize),
    Report(usize),
    Land(usize),
    /// An agent reads all and reports, with nothing in between.
    Serve(usize),
    AgentRestarts(usize),
    Pods(usize, bool),
    Use(usize, u16),
    Gone(usize),
    Back(usize),
    Wait(u64),
    Path(bool),
}

fn any_op() -> impl Strategy<Value = Op> {
    let node = || 0..NODES;
    let replica = || 0..2_usize;
    prop_oneof![
        4 => (replica(), 1..6_u64).prop_map(|(of, count)| Op::See(of, count)),
        4 => replica().prop_map(Op::Pass),
        4 => (0..8_usize).prop_map(Op::Arrive),
        1 => replica().prop_map(Op::GiveUp),
        1 => replica().prop_map(Op::Restart),
        8 => replica().prop_map(Op::Work),
        8 => (node(), 1..3_usize).prop_map(|(of, count)| Op::Hear(of, count)),
        4 => (node(), 0..8_usize).prop_map(|(of, which)| Op::Connect(of, which)),
        6 => (node(), 0..8_usize).prop_map(|(of, which)| Op::Close(of, which)),
        6 => node().prop_map(Op::Report),
        6 => node().prop_map(Op::Land),
        5 => node().prop_map(Op::Serve),
        1 => node().prop_map(Op::AgentRestarts),
        8 => (node(), any::<bool>()).prop_map(|(of, pods)| Op::Pods(of, pods)),
        1 => (node(), 0..9_000_u16).prop_map(|(of, used)| Op::Use(of, used)),
        1 => node().prop_map(Op::Gone),
        2 => node().prop_map(Op::Back),
        6 => (1..170_u64).prop_map(Op::Wait),
        5 => prop::bool::weighted(0.6).prop_map(Op::Path),
    ]
}

fn lives_through(history: Vec<Op>) -> Result<Model, TestCaseError> {
    let mut model = Model::new();
    for (step, op) in history.into_iter().enumerate() {
        let text = format!("{op:?}");
        model.apply(op);
        if let Some(clash) = model.clash() {
            return Err(TestCaseError::fail(format!("after step {step}, {text}: {clash}")));
        }
    }
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn no_two_nodes_may_use_one_block(history in prop::collection::vec(any_op(), 0..400)) {
        lives_through(history)?;
    }

    #[test]
    fn when_all_work_nothing_is_left_in_the_end(history in prop::collection::vec(any_op(), 0..200)) {
        let mut model = lives_through(history)?;
        model.wind_up();
        prop_assert!(model.latest().is_none(), "{:?}", model.latest());
        prop_assert!((0..NODES).all(|node| model.may_use(node).is_empty()));
    }
}

/// Else the properties above would say nothing.
#[test]
fn blocks_do_move_from_node_to_node_in_such_histories() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut moved = 0;
    for _ in 0..50 {
        let history = prop::collection::vec(any_op(), 400).new_tree(&mut runner).unwrap().current();
        moved += lives_through(history).unwrap().moved;
    }
    assert!(moved > 200, "{moved}");
}
