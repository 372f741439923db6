//! CEL rules that several fields share.
//!
//! A rule that looks into an address or a network holds for texts that are none, so that a wrong
//! value gets one message and not several.

use kube::core::{Message, Rule};
use schemars::Schema;

/// The longest text of one address.
pub(super) const LONGEST_ADDRESS: usize = 45;

/// A rule, and what is said when it does not hold.
pub(super) fn rule(cel: impl Into<String>, message: impl Into<String>) -> Rule {
    Rule::new(cel).message(Message::Message(message.into()))
}

/// The text is one IP address.
pub(super) fn address(field: &str) -> Rule {
    rule(
        "isIP(self)",
        format!(
            "{field} must be one IP address without prefix length, such as 192.0.2.10 or fd00::10"
        ),
    )
}

/// The address is one that other hosts can reach.
pub(super) fn reachable(field: &str) -> Rule {
    rule(
        "!isIP(self) || (ip(self).isGlobalUnicast() && !self.matches('^(0|2[45][0-9])[.]'))",
        format!(
            "{field} must be an address that other hosts can reach, not an unspecified, loopback, \
             link-local, multicast, broadcast or reserved one"
        ),
    )
}

/// The text lists networks, separated by commas; it may be empty.
pub(super) fn networks_in_text(field: &str) -> Rule {
    rule(
        "self.trim() == '' || self.split(',').all(net, isCIDR(net.trim()))",
        format!(
            "{field} must be networks in CIDR form, separated by commas, such as \
             10.244.0.0/16,fd00:244::/56"
        ),
    )
}

/// None of the networks in the text is every destination.
pub(super) fn no_default_route_in_text(field: &str) -> Rule {
    rule(
        "self.split(',').all(net, !isCIDR(net.trim()) || cidr(net.trim()).prefixLength() > 0)",
        every_destination(field),
    )
}

/// Every item is one network.
pub(super) fn networks_in_list(field: &str) -> Rule {
    rule(
        "self.all(net, isCIDR(net))",
        format!("{field} must be networks in CIDR form, such as 10.0.0.0/8 or fd00::/8"),
    )
}

/// None of the networks in the list is every destination.
pub(super) fn no_default_route_in_list(field: &str) -> Rule {
    rule("self.all(net, !isCIDR(net) || cidr(net).prefixLength() > 0)", every_destination(field))
}

fn every_destination(field: &str) -> String {
    format!("{field} must not hold every destination (0.0.0.0/0, ::/0); name smaller networks")
}

/// The text is empty or can name an object.
pub(super) fn object_name(field: &str) -> Rule {
    rule(
        "self == '' || self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        format!("{field} must be the name of an object: lower-case letters, digits, '-' and '.'"),
    )
}

/// The text is empty or can name a namespace.
pub(super) fn namespace(field: &str) -> Rule {
    rule(
        "self == '' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        format!("{field} must be the name of a namespace: lower-case letters, digits and '-'"),
    )
}

/// Removes the default that the schema of a field gets from its lenient reading.
pub(super) fn without_default(schema: &mut Schema) {
    schema.remove("default");
}
