//! Words for rules and routes that are not of our form, for people.
//!
//! Much as `ip` prints them; what `ip` has words for and we have not is left in the library's.

use std::fmt::Write;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

/// `IPv4 rule pref 1064 fwmark 0x1 mask 0xff lookup 7 proto 69`
pub(super) fn describe_rule(message: &RuleMessage) -> String {
    let header = &message.header;
    let mut text = format!("{} rule", family_name(header.family));
    if header.flags.contains(RuleFlags::Invert) {
        text.push_str(" not");
    }
    for attribute in &message.attributes {
        // writing into a text cannot fail
        let _ = match attribute {
            RuleAttribute::Priority(priority) => write!(text, " pref {priority}"),
            RuleAttribute::Source(addr) => write!(text, " from {addr}/{}", header.src_len),
            RuleAttribute::Destination(addr) => write!(text, " to {addr}/{}", header.dst_len),
            RuleAttribute::FwMark(mark) => write!(text, " fwmark {mark:#x}"),
            RuleAttribute::FwMask(mask) => write!(text, " mask {mask:#x}"),
            RuleAttribute::Iifname(name) => write!(text, " iif {name}"),
            RuleAttribute::Oifname(name) => write!(text, " oif {name}"),
            RuleAttribute::Table(table) if header.action == RuleAction::ToTable => {
                write!(text, " lookup {table}")
            }
            RuleAttribute::Goto(target) => write!(text, " goto {target}"),
            RuleAttribute::Protocol(protocol) => write!(text, " proto {}", u8::from(*protocol)),
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Table(_) => Ok(()),
            other => write!(text, " {other:?}"),
        };
    }
    if !matches!(header.action, RuleAction::ToTable | RuleAction::Goto) {
        let _ = write!(text, " {:?}", header.action);
    }
    text
}

/// `IPv4 route Unicast default via 10.0.0.1 dev #2 table 10064 proto 4 metric 5`
pub(super) fn describe_route(message: &RouteMessage) -> String {
    let header = &message.header;
    let mut text = format!("{} route {:?}", family_name(header.address_family), header.kind);
    if header.destination_prefix_length == 0 {
        text.push_str(" default");
    }
    for attribute in &message.attributes {
        let _ = match attribute {
            RouteAttribute::Destination(addr) => {
                write!(text, " {}/{}", address(addr), header.destination_prefix_length)
            }
            RouteAttribute::Gateway(addr) => write!(text, " via {}", address(addr)),
            RouteAttribute::Oif(index) => write!(text, " dev #{index}"),
            RouteAttribute::Table(table) => write!(text, " table {table}"),
            RouteAttribute::Priority(metric) => write!(text, " metric {metric}"),
            RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_) => Ok(()),
            other => write!(text, " {other:?}"),
        };
    }
    let _ = write!(text, " proto {}", u8::from(header.protocol));
    if header.flags.contains(RouteFlags::Onlink) {
        text.push_str(" onlink");
    }
    text
}

fn address(addr: &RouteAddress) -> String {
    match addr {
        RouteAddress::Inet(addr) => addr.to_string(),
        RouteAddress::Inet6(addr) => addr.to_string(),
        other => format!("{other:?}"),
    }
}

const fn family_name(family: AddressFamily) -> &'static str {
    match family {
        AddressFamily::Inet => "IPv4",
        AddressFamily::Inet6 => "IPv6",
        _ => "foreign",
    }
}
