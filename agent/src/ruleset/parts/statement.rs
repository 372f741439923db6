//! Statements: what a rule asks, and what it does.

use std::ops::RangeInclusive;

use nftables::expr::{BinaryOperation, Expression};
use nftables::stmt::{
    Counter, Limit, Mangle, Match, NAT, NATFamily, NATFlag, Operator, SetOp, Statement, VerdictMap,
};

use super::super::loaded::{Loaded, Metered};
use super::{Expr, binary, ct_state, masked, port_range, protocol, target, word};
use crate::routing::Family;

/// One statement of a rule.
#[derive(Clone, Debug)]
pub(in crate::ruleset) struct Part {
    pub(in crate::ruleset) text: String,
    pub(in crate::ruleset) json: Loaded,
}

fn compare(left: Expr, operator: Operator, sign: &str, right: Expr) -> Part {
    Part {
        text: format!("{} {sign}{}", left.text, right.text),
        json: Statement::Match(Match { left: left.json, right: right.json, op: operator }).into(),
    }
}

pub(in crate::ruleset) fn is(left: Expr, right: Expr) -> Part {
    compare(left, Operator::EQ, "", right)
}

pub(in crate::ruleset) fn is_not(left: Expr, right: Expr) -> Part {
    compare(left, Operator::NEQ, "!= ", right)
}

pub(in crate::ruleset) fn is_zero(left: Expr) -> Part {
    compare(left, Operator::EQ, "== ", Expr { text: "0".into(), json: Expression::Number(0) })
}

pub(in crate::ruleset) fn is_not_zero(left: Expr) -> Part {
    is_not(left, Expr { text: "0".into(), json: Expression::Number(0) })
}

/// `ct state new,invalid`: one of the states.
pub(in crate::ruleset) fn state_in(states: &[&'static str]) -> Part {
    let left = ct_state();
    Part {
        text: format!("{} {}", left.text, states.join(",")),
        json: Statement::Match(Match {
            left: left.json,
            right: Expression::List(states.iter().map(|s| word(*s).json).collect()),
            op: Operator::IN,
        })
        .into(),
    }
}

pub(in crate::ruleset) fn write(field: Expr, value: Expr) -> Part {
    Part {
        text: format!("{} set {}", field.text, value.text),
        json: Statement::Mangle(Mangle { key: field.json, value: value.json }).into(),
    }
}

/// `FIELD set FIELD & ~mask | value`: other people's bits stay as they are.
pub(in crate::ruleset) fn write_bits(field: &Expr, mask: u32, value: u32) -> Part {
    let kept = masked(field.clone(), !mask);
    let bits = Expr {
        text: format!("{} | {value:#010x}", kept.text),
        json: binary(BinaryOperation::OR(vec![kept.json, Expression::Number(value)])),
    };
    write(field.clone(), bits)
}

pub(in crate::ruleset) fn choose(key: Expr, verdicts: Expr) -> Part {
    Part {
        text: format!("{} vmap {}", key.text, verdicts.text),
        json: Statement::VerdictMap(VerdictMap { key: key.json, data: verdicts.json }).into(),
    }
}

pub(in crate::ruleset) fn snat_to(family: Family, address: Expr) -> Part {
    let name = protocol(family);
    let family = match family {
        Family::V4 => NATFamily::IP,
        Family::V6 => NATFamily::IP6,
    };
    Part {
        text: format!("snat {name} to {}", address.text),
        json: Statement::SNAT(Some(NAT {
            addr: Some(address.json),
            family: Some(family),
            port: None,
            flags: None,
        }))
        .into(),
    }
}

/// How a port is chosen from a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ruleset) enum Choice {
    /// The packet's own, if it is in the range and free.
    Own,
    /// Any.
    Random,
}

/// Wants a match of the protocol before it.
pub(in crate::ruleset) fn snat_to_ports(
    family: Family,
    address: &Expr,
    ports: &RangeInclusive<u16>,
    choice: Choice,
) -> Part {
    let Part { text, mut json } = snat_to(family, address.clone());
    let ports = port_range(ports);
    if let Loaded::Known(Statement::SNAT(Some(nat))) = &mut json {
        nat.port = Some(ports.json);
        nat.flags = (choice == Choice::Random).then(|| [NATFlag::FullyRandom].into());
    }
    let text = match family {
        Family::V4 => text,
        Family::V6 => format!("snat ip6 to [{}]", address.text),
    };
    let flag = if choice == Choice::Random { " fully-random" } else { "" };
    Part { text: format!("{text}:{}{flag}", ports.text), json }
}

/// Matches what there is more of, by the set's element for `key`, than `burst` at once and `rate` a
/// second; nothing when the set has no room for the element.
pub(in crate::ruleset) fn more_than(set: &str, key: Expr, rate: u32, burst: u32) -> Part {
    let limit = Limit {
        rate,
        rate_unit: None,
        per: Some("second".into()),
        burst: Some(burst),
        burst_unit: None,
        inv: Some(true),
    };
    let how_many = format!("limit rate over {rate}/second burst {burst} packets");
    Part {
        text: format!("update @{set} {{ {} {how_many} }}", key.text),
        json: Loaded::Metered(Metered {
            op: SetOp::Update,
            elem: key.json,
            set: format!("@{set}").into(),
            stmt: [Statement::Limit(limit)],
        }),
    }
}

pub(in crate::ruleset) fn count(counter: &'static str) -> Part {
    Part {
        text: format!("counter name \"{counter}\""),
        json: Statement::Counter(Counter::Named(counter.into())).into(),
    }
}

pub(in crate::ruleset) fn accept() -> Part {
    Part { text: "accept".into(), json: Statement::Accept(None).into() }
}

pub(in crate::ruleset) fn drop() -> Part {
    Part { text: "drop".into(), json: Statement::Drop(None).into() }
}

pub(in crate::ruleset) fn goto(chain: &str) -> Part {
    Part { text: format!("goto {chain}"), json: Statement::Goto(target(chain)).into() }
}
