//! A packet's way through chains, by reading the text of their rules as nft would.
//!
//! Knows exactly the words that our rules are made of; any other is a panic, so that a new form
//! of rule has to be taught here before the properties hold again.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use shared::PodIp;

use super::packet::{PODS_PORT, Packet};
use super::table::{ModelChain, ModelTable};
use crate::pod_tables::PodTables;
use crate::unsure::Unsure;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Snat(IpAddr, Option<(u16, u16)>),
    PassedOn(IpAddr),
}

/// What rules can ask of the kernel, besides the packet.
pub(super) struct Surroundings<'a> {
    pub(super) pods: &'a PodTables,
    pub(super) local: &'a BTreeSet<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Number(u32),
    Addr(IpAddr),
    Word(String),
}

enum Outcome {
    /// A part did not match, or the rule has no verdict.
    Next,
    Final(Verdict),
    Goto(String),
}

/// What a part of a rule means for the rest of it.
enum Part {
    True,
    False,
    Chosen(String),
}

impl Part {
    fn of(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What the base chain `name` says; its policy is accept.
pub(super) fn verdict(
    table: &ModelTable,
    name: &str,
    packet: &mut Packet,
    around: &Surroundings<'_>,
) -> Verdict {
    let mut name = name.to_owned();
    'chain: loop {
        let empty = ModelChain::default();
        for rule in &table.chains.get(&name).unwrap_or(&empty).rules {
            let mut words = Words { rest: &rule.text, packet, around };
            match words.rule() {
                Outcome::Next => {}
                Outcome::Final(verdict) => return verdict,
                Outcome::Goto(next) => {
                    name = next;
                    continue 'chain;
                }
            }
        }
        return Verdict::Accept;
    }
}

struct Words<'a, 'p> {
    rest: &'a str,
    packet: &'p mut Packet,
    around: &'a Surroundings<'a>,
}

impl<'a> Words<'a, '_> {
    fn next(&mut self) -> &'a str {
        let (first, rest) = self.rest.split_once(' ').unwrap_or((self.rest, ""));
        self.rest = rest;
        first
    }

    fn peek(&self) -> &'a str {
        self.rest.split_once(' ').map_or(self.rest, |(first, _)| first)
    }

    fn skip(&mut self, expected: &str) {
        assert_eq!(self.next(), expected);
    }

    fn rule(&mut self) -> Outcome {
        while !self.rest.is_empty() {
            match self.peek() {
                "accept" => return Outcome::Final(Verdict::Accept),
                "drop" => return Outcome::Final(Verdict::Drop),
                "goto" => {
                    self.skip("goto");
                    return Outcome::Goto(self.next().to_owned());
                }
                "counter" => {
                    self.skip("counter");
                    self.skip("name");
                    self.next();
                }
                // Never are there so many connections.
                "update" => return Outcome::Next,
                "snat" => {
                    self.skip("snat");
                    self.next();
                    self.skip("to");
                    if let Some((addr, ports)) = address_and_ports(self.peek()) {
                        return Outcome::Final(Verdict::Snat(addr, Some(ports)));
                    }
                    return match self.expression() {
                        Some(Value::Addr(addr)) => Outcome::Final(Verdict::Snat(addr, None)),
                        _ => Outcome::Next,
                    };
                }
                "fwd" => {
                    for word in
                        ["fwd", if self.packet.daddr.is_ipv4() { "ip" } else { "ip6" }, "to"]
                    {
                        self.skip(word);
                    }
                    return Outcome::Final(Verdict::PassedOn(self.next().parse().unwrap()));
                }
                _ => match self.statement() {
                    Part::True => {}
                    Part::Chosen(chain) => return Outcome::Goto(chain),
                    Part::False => return Outcome::Next,
                },
            }
        }
        Outcome::Next
    }

    /// A match, a write or a choice.
    fn statement(&mut self) -> Part {
        let field = self.rest;
        let Some(value) = self.expression() else { return Part::False };
        match self.peek() {
            "set" => {
                self.skip("set");
                let Some(new) = self.expression() else { return Part::False };
                match (field.split_once(" set ").map(|(name, _)| name), new) {
                    (Some("ip saddr" | "ip6 saddr"), Value::Addr(addr)) => {
                        self.packet.saddr = addr;
                    }
                    (Some("meta mark"), Value::Number(mark)) => self.packet.mark = mark,
                    (Some("ct mark"), Value::Number(mark)) => self.packet.connection.mark = mark,
                    other => panic!("cannot write {other:?}"),
                }
                Part::True
            }
            "vmap" => {
                self.skip("vmap");
                self.choice(&value).map_or(Part::False, |target| {
                    Part::Chosen(target.strip_prefix("goto ").expect("only gotos").to_owned())
                })
            }
            "!=" => {
                self.skip("!=");
                Part::of(!self.includes(&value))
            }
            "==" => {
                self.skip("==");
                Part::of(self.includes(&value))
            }
            _ => Part::of(self.includes(&value)),
        }
    }

    fn expression(&mut self) -> Option<Value> {
        let mut value = self.operand()?;
        loop {
            match self.peek() {
                "&" | "|" => {
                    let and = self.next() == "&";
                    value = match (&value, self.operand()?) {
                        (Value::Number(left), Value::Number(right)) => {
                            Value::Number(if and { left & right } else { left | right })
                        }
                        (Value::Addr(_), Value::Addr(mask)) if and && mask.is_unspecified() => {
                            Value::Addr(mask)
                        }
                        _ => panic!("bits of {value:?}"),
                    };
                }
                "map" => {
                    self.skip("map");
                    value = literal(&self.choice(&value)?);
                }
                // Several together: fragments and connections made before, of which there are none.
                "." => return None,
                _ => return Some(value),
            }
        }
    }

    /// A field of the packet or a constant; `None` when the packet has no such field.
    fn operand(&mut self) -> Option<Value> {
        let v4 = self.packet.daddr.is_ipv4();
        let addr = |of: &str, addr| ((of == "ip") == v4).then_some(Value::Addr(addr));
        match self.next() {
            family @ ("ip" | "ip6") => match self.next() {
                "saddr" => addr(family, self.packet.saddr),
                "daddr" => addr(family, self.packet.daddr),
                // Nothing of this model is in fragments.
                "frag-off" => Some(Value::Number(0)),
                other => panic!("field {other}"),
            },
            "icmp" | "icmpv6" | "frag" => None,
            "th" => {
                let source = self.next() == "sport";
                let port = self.packet.connection.port.unwrap_or(PODS_PORT);
                let port = if source { port } else { self.packet.dport };
                Some(Value::Number(port.into()))
            }
            "numgen" => {
                for word in ["random", "mod"] {
                    self.skip(word);
                }
                Some(Value::Number(self.packet.chance % self.next().parse::<u32>().unwrap()))
            }
            "tcp" => {
                for word in ["flags", "&", "(syn", "|", "ack)"] {
                    self.skip(word);
                }
                self.packet.connection.session.then(|| Value::Word("syn".into()))
            }
            "meta" => match self.next() {
                "mark" => Some(Value::Number(self.packet.mark)),
                // Nothing of this model is flooded.
                "pkttype" => Some(Value::Word("host".into())),
                "l4proto" => {
                    let tcp = self.packet.connection.session;
                    Some(Value::Word(if tcp { "tcp" } else { "udp" }.into()))
                }
                "nfproto" => Some(Value::Word(if v4 { "ipv4" } else { "ipv6" }.into())),
                other => panic!("meta {other}"),
            },
            "iifname" => Some(Value::Word(self.packet.iif.clone())),
            "ct" => self.tracked(),
            "fib" => {
                let of = if self.next() == "saddr" { self.packet.saddr } else { self.packet.daddr };
                self.skip("type");
                let local = self.around.local.contains(&of);
                Some(Value::Word(if local { "local" } else { "unicast" }.into()))
            }
            "rt" => {
                let family = self.next();
                self.skip("nexthop");
                addr(family, self.packet.nexthop)
            }
            constant => Some(literal(constant)),
        }
    }

    fn tracked(&mut self) -> Option<Value> {
        let connection = self.packet.connection;
        match self.next() {
            "mark" => Some(Value::Number(connection.mark)),
            "direction" => Some(Value::Word("original".into())),
            "state" => {
                Some(Value::Word(if self.packet.new { "new" } else { "established" }.into()))
            }
            "status" => {
                self.skip("&");
                let bit = self.next() == "snat"
                    && connection.source.is_some_and(|source| source != connection.pod.addr());
                Some(Value::Number(bit.into()))
            }
            "original" => {
                let v4 = self.next() == "ip";
                self.skip("saddr");
                (connection.pod.is_ipv4() == v4).then_some(Value::Addr(connection.pod.addr()))
            }
            other => panic!("ct {other}"),
        }
    }

    /// The entry of a map for `key`.
    fn choice(&mut self, key: &Value) -> Option<String> {
        if self.peek() == "{" {
            let found = self.elements().into_iter().find_map(|entry| {
                let (of, value) = entry.split_once(" : ").expect("an entry has a value");
                (literal(of) == *key).then(|| value.to_owned())
            });
            return found;
        }
        assert!(["@pod_vip4", "@pod_vip6"].contains(&self.next()));
        let Value::Addr(addr) = key else { panic!("pods have addresses, not {key:?}") };
        let vip = *self.around.pods.vips.get(&PodIp::try_from(*addr).ok()?)?;
        let nobody: IpAddr = match addr {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Some(vip.map_or(nobody, shared::Vip::addr).to_string())
    }

    /// Whether the set or constant that comes next includes `value`.
    fn includes(&mut self, value: &Value) -> bool {
        match self.peek() {
            "{" => self.elements().iter().any(|element| is(value, element)),
            "@mapped4" | "@mapped6" => {
                self.next();
                let Value::Addr(addr) = value else { panic!("pods have addresses, not {value:?}") };
                PodIp::try_from(*addr).is_ok_and(|pod| self.around.pods.guarded.contains(&pod))
            }
            "@known4" | "@known6" => {
                self.next();
                let Value::Addr(addr) = value else { panic!("pods have addresses, not {value:?}") };
                PodIp::try_from(*addr).is_ok_and(|pod| self.around.pods.known.contains(&pod))
            }
            "@unsure4" | "@unsure6" => {
                self.next();
                let Value::Addr(addr) = value else { panic!("nothing is asked by {value:?}") };
                assert!(addr.is_unspecified());
                self.around.pods.unsure[usize::from(addr.is_ipv6())] != Unsure::No
            }
            // Nothing of this model is on its way for so long.
            "@leaving4" | "@leaving6" => {
                self.next();
                false
            }
            _ => self.next().split(',').any(|constant| is(value, constant)),
        }
    }

    fn elements(&mut self) -> Vec<&'a str> {
        self.skip("{");
        let (inside, rest) = self.rest.split_once(" }").expect("a set ends");
        self.rest = rest.trim_start();
        inside.split(", ").collect()
    }
}

fn is(value: &Value, constant: &str) -> bool {
    if let (Value::Number(number), Some((first, last))) = (value, constant.split_once('-')) {
        return (first.parse().unwrap()..=last.parse().unwrap()).contains(number);
    }
    match (value, constant.parse::<IpNet>()) {
        (Value::Addr(addr), Ok(net)) => net.contains(addr),
        _ => literal(constant) == *value,
    }
}

fn literal(text: &str) -> Value {
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        return Value::Number(u32::from_str_radix(hexadecimal, 16).unwrap());
    }
    if let Ok(number) = text.parse() {
        return Value::Number(number);
    }
    text.parse().map_or_else(|_| Value::Word(text.trim_matches('"').to_owned()), Value::Addr)
}

/// `ADDRESS:FIRST-LAST`, an IPv6 address in brackets.
fn address_and_ports(text: &str) -> Option<(IpAddr, (u16, u16))> {
    let (addr, ports) = text.rsplit_once(':')?;
    let (first, last) = ports.split_once('-')?;
    let ports = (first.parse().ok()?, last.parse().ok()?);
    Some((addr.trim_matches(['[', ']']).parse().ok()?, ports))
}
