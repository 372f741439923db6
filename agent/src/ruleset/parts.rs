//! The words that rules are made of: each is nft's text and the `nftables` crate's value in one,
//! so that what a person reads and what is loaded cannot differ.

mod statement;

use std::fmt::Display;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use nftables::expr::{
    BinaryOperation, CT, CTDir, Expression, Fib, FibFlag, FibResult, Map, Meta, MetaKey,
    NamedExpression, NgMode, Numgen, Payload, PayloadField, Prefix, RT, RTFamily, RTKey, Range,
    SetItem, Verdict,
};
use nftables::stmt::JumpTarget;

pub(super) use self::statement::{
    Choice, Part, accept, choose, count, drop, goto, is, is_not, is_not_zero, is_zero, more_than,
    snat_to, snat_to_ports, state_in, write, write_bits,
};
use super::unsure_key;
use crate::routing::Family;

/// Something that has a value for a packet.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub(super) text: String,
    pub(super) json: Expression<'static>,
}

fn named(text: impl Into<String>, json: NamedExpression<'static>) -> Expr {
    Expr { text: text.into(), json: Expression::Named(json) }
}

const fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn header(protocol: &'static str, field: &'static str) -> Expr {
    named(
        format!("{protocol} {field}"),
        NamedExpression::Payload(Payload::PayloadField(PayloadField {
            protocol: protocol.into(),
            field: field.into(),
        })),
    )
}

pub(super) fn saddr(family: Family) -> Expr {
    header(protocol(family), "saddr")
}

pub(super) fn daddr(family: Family) -> Expr {
    header(protocol(family), "daddr")
}

pub(super) fn icmp_type(family: Family) -> Expr {
    match family {
        Family::V4 => header("icmp", "type"),
        Family::V6 => header("icmpv6", "type"),
    }
}

/// The protocol that the network layer carries.
pub(super) fn l4proto() -> Expr {
    meta(MetaKey::L4proto, "meta l4proto")
}

/// Source port of whatever protocol has one.
pub(super) fn dport() -> Expr {
    header("th", "dport")
}

pub(super) fn sport() -> Expr {
    header("th", "sport")
}

pub(super) fn echo_id(family: Family) -> Expr {
    match family {
        Family::V4 => header("icmp", "id"),
        Family::V6 => header("icmpv6", "id"),
    }
}

/// A number from 0 on, below `end`, by chance.
pub(super) fn random_below(end: u32) -> Expr {
    named(
        format!("numgen random mod {end}"),
        NamedExpression::Numgen(Numgen { mode: NgMode::Random, ng_mod: end, offset: None }),
    )
}

/// `tcp flags & (syn | ack)`: what tells a first segment (`syn` alone) from all others.
pub(super) fn tcp_syn_and_ack() -> Expr {
    let flags = header("tcp", "flags");
    Expr {
        text: format!("{} & (syn | ack)", flags.text),
        json: binary(BinaryOperation::AND(
            flags.json,
            binary(BinaryOperation::OR(vec![word("syn").json, word("ack").json])),
        )),
    }
}

fn meta(key: MetaKey, text: &str) -> Expr {
    named(text, NamedExpression::Meta(Meta { key }))
}

pub(super) fn meta_mark() -> Expr {
    meta(MetaKey::Mark, "meta mark")
}

pub(super) fn nfproto() -> Expr {
    meta(MetaKey::Nfproto, "meta nfproto")
}

pub(super) fn iifname() -> Expr {
    meta(MetaKey::Iifname, "iifname")
}

fn ct(key: &'static str) -> Expr {
    named(format!("ct {key}"), NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

pub(super) fn ct_mark() -> Expr {
    ct("mark")
}

pub(super) fn ct_state() -> Expr {
    ct("state")
}

pub(super) fn ct_direction() -> Expr {
    ct("direction")
}

/// `ct original ip saddr`: who began the connection, before any translation.
pub(super) fn ct_original_saddr(family: Family) -> Expr {
    let key = match family {
        Family::V4 => "ip saddr",
        Family::V6 => "ip6 saddr",
    };
    named(
        format!("ct original {key}"),
        NamedExpression::CT(CT { key: key.into(), family: None, dir: Some(CTDir::Original) }),
    )
}

/// `ct original ip daddr`: to whom the connection was begun, before any translation.
pub(super) fn ct_original_daddr(family: Family) -> Expr {
    let key = match family {
        Family::V4 => "ip daddr",
        Family::V6 => "ip6 daddr",
    };
    named(
        format!("ct original {key}"),
        NamedExpression::CT(CT { key: key.into(), family: None, dir: Some(CTDir::Original) }),
    )
}

/// `fib saddr type` or `fib daddr type`: what the routing tables call the address.
pub(super) fn fib_type(flag: FibFlag) -> Expr {
    let text = match flag {
        FibFlag::Daddr => "fib daddr type",
        _ => "fib saddr type",
    };
    named(
        text,
        NamedExpression::Fib(Fib { result: FibResult::Type, flags: [flag].into_iter().collect() }),
    )
}

/// `rt ip nexthop`: the gateway that routing has chosen, or the destination where there is none.
pub(super) fn nexthop(family: Family) -> Expr {
    let (text, family) = match family {
        Family::V4 => ("rt ip nexthop", RTFamily::IP),
        Family::V6 => ("rt ip6 nexthop", RTFamily::IP6),
    };
    named(text, NamedExpression::RT(RT { key: RTKey::NextHop, family: Some(family) }))
}

fn binary(operation: BinaryOperation<'static>) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(operation))
}

pub(super) fn number(value: u32) -> Expr {
    Expr { text: format!("{value:#010x}"), json: Expression::Number(value) }
}

/// A number as people write it.
pub(super) fn decimal(value: u32) -> Expr {
    Expr { text: value.to_string(), json: Expression::Number(value) }
}

pub(super) fn masked(expr: Expr, mask: u32) -> Expr {
    Expr {
        text: format!("{} & {mask:#010x}", expr.text),
        json: binary(BinaryOperation::AND(expr.json, Expression::Number(mask))),
    }
}

/// `ip saddr & 0.0.0.0`: the same for every address, to ask whether a set is empty.
pub(super) fn any(field: Expr, family: Family) -> Expr {
    let mask = address(unsure_key(family));
    Expr {
        text: format!("{} & {}", field.text, mask.text),
        json: binary(BinaryOperation::AND(field.json, mask.json)),
    }
}

/// `EXPR & bit != 0` of a status word, by the bit's name.
pub(super) fn status_bit(bit: &'static str) -> Expr {
    let status = ct("status");
    Expr {
        text: format!("{} & {bit}", status.text),
        json: binary(BinaryOperation::AND(status.json, word(bit).json)),
    }
}

pub(super) fn word(text: impl Into<String>) -> Expr {
    let text = text.into();
    Expr { json: Expression::String(text.clone().into()), text }
}

/// A quoted word: interface names may contain what nft reads as operators.
pub(super) fn quoted(text: &str) -> Expr {
    Expr { text: format!("\"{text}\""), json: Expression::String(text.to_owned().into()) }
}

pub(super) fn address(address: impl Display) -> Expr {
    word(address.to_string())
}

pub(super) fn network(net: &IpNet) -> Expr {
    if net.prefix_len() == net.max_prefix_len() {
        return address(net.addr());
    }
    named(
        net.to_string(),
        NamedExpression::Prefix(Prefix {
            addr: Box::new(address(net.addr()).json),
            len: net.prefix_len().into(),
        }),
    )
}

/// A constant range of ports.
pub(super) fn port_range(ports: &RangeInclusive<u16>) -> Expr {
    let (first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
    let range = Range { range: [Expression::Number(first), Expression::Number(last)] };
    Expr { text: format!("{first}-{last}"), json: Expression::Range(Box::new(range)) }
}

/// A declared set or map, by name.
pub(super) fn declared(name: &str) -> Expr {
    word(format!("@{name}"))
}

/// Several together: `ip saddr . th dport`.
pub(super) fn together(exprs: impl IntoIterator<Item = Expr>) -> Expr {
    let (texts, json): (Vec<_>, Vec<_>) = exprs.into_iter().map(|e| (e.text, e.json)).unzip();
    named(texts.join(" . "), NamedExpression::Concat(json))
}

/// An anonymous set: it lives and dies with its rule, and nobody can change it.
pub(super) fn set(elements: impl IntoIterator<Item = Expr>) -> Expr {
    let (texts, items): (Vec<_>, Vec<_>) =
        elements.into_iter().map(|e| (e.text, SetItem::Element(e.json))).unzip();
    named(format!("{{ {} }}", texts.join(", ")), NamedExpression::Set(items))
}

/// An anonymous map: see [`set`].
pub(super) fn map(entries: impl IntoIterator<Item = (Expr, Expr)>) -> Expr {
    let (texts, items): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .map(|(k, v)| (format!("{} : {}", k.text, v.text), SetItem::Mapping(k.json, v.json)))
        .unzip();
    named(format!("{{ {} }}", texts.join(", ")), NamedExpression::Set(items))
}

pub(super) fn looked_up(key: Expr, map: Expr) -> Expr {
    named(
        format!("{} map {}", key.text, map.text),
        NamedExpression::Map(Box::new(Map { key: key.json, data: map.json })),
    )
}

fn target(chain: &str) -> JumpTarget<'static> {
    JumpTarget { target: chain.to_owned().into() }
}

/// A verdict as a map's value.
pub(super) fn goes_to(chain: &str) -> Expr {
    Expr { text: format!("goto {chain}"), json: Expression::Verdict(Verdict::Goto(target(chain))) }
}
