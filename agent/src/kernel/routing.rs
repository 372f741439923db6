//! Reads and changes our policy rules and routes.
//!
//! Touches what [`Ownership`] says is ours, in the network namespace it was opened in, and nothing
//! else. Everything is compared as our own types; `wire` has the messages.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::rule::RuleMessage;
use nix::errno::Errno;

use super::route_socket::{RequestError, RouteSocket};
use crate::routing::{Family, ObjectKind, ObservedRouting, Ownership, PolicyRule, Route, Stray};

mod text;
pub(super) mod wire;

use wire::Seen;

/// Our rules and routes in the kernel.
#[derive(Clone, Debug)]
pub struct Routing {
    socket: RouteSocket,
    owned: Ownership,
}

/// What could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    #[error("cannot read policy rules and routes")]
    Observe(#[source] RequestError),
    #[error("cannot add rule {rule}")]
    AddRule { rule: PolicyRule, source: RequestError },
    #[error("cannot add rule {rule}: somebody else has one just like it")]
    RuleIsForeign { rule: PolicyRule },
    /// Error number `EINVAL` on a route to a holder: the VIP is an address of this node or, with
    /// IPv6, table main leads to it by another device.
    #[error("cannot add route {route}")]
    AddRoute { route: Route, source: RequestError },
    #[error("cannot add route {route}: {other} of somebody else is in its place")]
    RouteIsForeign { route: Route, other: String },
    #[error("cannot delete rule {rule}")]
    DelRule { rule: PolicyRule, source: RequestError },
    #[error("cannot delete route {route}")]
    DelRoute { route: Route, source: RequestError },
    #[error("cannot delete {stray}")]
    DelStray { stray: Stray, source: RequestError },
    #[error("cannot delete {stray}: its message is none of the kernel's")]
    BrokenStray { stray: Stray },
}

impl Routing {
    /// Takes charge of what is `owned`, over `socket`.
    pub const fn new(socket: RouteSocket, owned: Ownership) -> Self {
        Self { socket, owned }
    }

    /// Everything in our ranges, of both families.
    pub async fn observe(&self) -> Result<ObservedRouting, RoutingError> {
        let mut observed = ObservedRouting::default();
        let mut names = DeviceNames::default();
        for family in Family::ALL {
            self.observe_rules(family, &mut observed).await.map_err(RoutingError::Observe)?;
            self.observe_routes(family, &mut observed, &mut names)
                .await
                .map_err(RoutingError::Observe)?;
        }
        Ok(observed)
    }

    async fn observe_rules(
        &self,
        family: Family,
        observed: &mut ObservedRouting,
    ) -> Result<(), RequestError> {
        // the kernel has no filter for rules
        for message in self.dump(wire::all_rules(family)).await? {
            let RouteNetlinkMessage::NewRule(message) = message else { continue };
            match wire::read_rule(family, &message, &self.owned) {
                Seen::Elsewhere => {}
                Seen::Foreign(foreign) => drop(observed.foreign.insert(foreign)),
                Seen::Stray(stray) => drop(observed.strays.insert(stray)),
                // a second one just like it can only be made on purpose; deleting "one of them"
                // needs no more than this
                Seen::Ours(rule) if observed.rules.contains(&rule) => {
                    observed.strays.insert(wire::stray_rule(&message));
                }
                Seen::Ours(rule) => drop(observed.rules.insert(rule)),
            }
        }
        Ok(())
    }

    async fn observe_routes(
        &self,
        family: Family,
        observed: &mut ObservedRouting,
        names: &mut DeviceNames,
    ) -> Result<(), RequestError> {
        // by protocol finds ours in any table, however many routes others have; by table finds
        // what others have put into those of our tables that packets are sent to
        let mut messages =
            self.dump(wire::routes_by_protocol(family, self.owned.protocol())).await?;
        let tables: BTreeSet<u32> = messages
            .iter()
            .filter_map(route_of)
            .map(wire::table_of)
            .chain(
                observed
                    .rules
                    .iter()
                    .filter(|rule| rule.family == family)
                    .filter_map(PolicyRule::table),
            )
            .filter(|table| self.owned.tables().contains(table))
            .collect();
        for table in tables {
            let in_table =
                self.dump(wire::routes_in_table(family, table, RouteType::Unspec)).await?;
            messages.extend(in_table.into_iter().filter(|message| {
                route_of(message)
                    .is_some_and(|route| !wire::is_ours_by_protocol(route, &self.owned))
            }));
        }
        for message in messages.iter().filter_map(route_of) {
            if let Some(index) = wire::device_of(message) {
                self.learn_name(index, names).await?;
            }
            match wire::read_route(family, message, &self.owned, &names.0) {
                Seen::Elsewhere => {}
                Seen::Foreign(foreign) => drop(observed.foreign.insert(foreign)),
                Seen::Stray(stray) => drop(observed.strays.insert(stray)),
                Seen::Ours(route) => drop(observed.routes.insert(route)),
            }
        }
        Ok(())
    }

    async fn learn_name(&self, index: u32, names: &mut DeviceNames) -> Result<(), RequestError> {
        if names.0.contains_key(&index) {
            return Ok(());
        }
        let mut question = LinkMessage::default();
        question.header.index = index;
        match self.socket.lookup(RouteNetlinkMessage::GetLink(question)).await {
            Ok(RouteNetlinkMessage::NewLink(link)) => {
                names.0.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some((index, name)),
                    _ => None,
                }));
                Ok(())
            }
            // gone between two looks: its routes are on their way out, too
            Err(error) if error.errno() == Some(Errno::ENODEV as i32) => Ok(()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A dump; a table, or a family, that does not exist is empty.
    async fn dump(
        &self,
        question: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, RequestError> {
        match self.socket.dump(question).await {
            Err(error) if is_one_of(&error, &[Errno::ENOENT, Errno::EAFNOSUPPORT]) => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// Adds a rule. It is no error when it is there already.
    pub async fn add_rule(&self, rule: &PolicyRule) -> Result<(), RoutingError> {
        let message = RouteNetlinkMessage::NewRule(wire::rule_message(rule, self.owned.protocol()));
        match self.socket.change(message, NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => Ok(()),
            Err(error) if is_one_of(&error, &[Errno::EEXIST]) => {
                // not every kernel has compared the protocol
                let mut observed = ObservedRouting::default();
                self.observe_rules(rule.family, &mut observed)
                    .await
                    .map_err(|source| RoutingError::AddRule { rule: *rule, source })?;
                if observed.rules.contains(rule) {
                    Ok(())
                } else {
                    Err(RoutingError::RuleIsForeign { rule: *rule })
                }
            }
            Err(source) => Err(RoutingError::AddRule { rule: *rule, source }),
        }
    }

    /// Adds a route. One of ours that is in its place is replaced, without a gap: the same one, or
    /// one by another device. It is no error when it is there already.
    pub async fn add_route(&self, route: &Route) -> Result<(), RoutingError> {
        let failed = |source| RoutingError::AddRoute { route: route.clone(), source };
        let message =
            || RouteNetlinkMessage::NewRoute(wire::route_message(route, self.owned.protocol()));
        match self.socket.change(message(), NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if is_one_of(&error, &[Errno::EEXIST]) => {}
            other => return other.map_err(failed),
        }
        // replacing goes by metric alone, and would take somebody else's as well
        let there =
            self.dump(wire::routes_in_table(route.family, route.table, RouteType::Unspec)).await;
        let there = there.map_err(failed)?;
        let mut same_place =
            there.iter().filter_map(route_of).filter(|other| wire::has_the_place_of(other, route));
        if let Some(other) = same_place.find(|other| !wire::is_ours_by_protocol(other, &self.owned))
        {
            let other = text::describe_route(other);
            return Err(RoutingError::RouteIsForeign { route: route.clone(), other });
        }
        self.socket.change(message(), NLM_F_CREATE | NLM_F_REPLACE).await.map_err(failed)
    }

    /// Deletes a rule. It is no error when it is gone already.
    pub async fn del_rule(&self, rule: &PolicyRule) -> Result<(), RoutingError> {
        let message = RouteNetlinkMessage::DelRule(wire::rule_message(rule, self.owned.protocol()));
        self.delete(message).await.map_err(|source| RoutingError::DelRule { rule: *rule, source })
    }

    /// Deletes a route. It is no error when it is gone already.
    pub async fn del_route(&self, route: &Route) -> Result<(), RoutingError> {
        let message =
            RouteNetlinkMessage::DelRoute(wire::route_message(route, self.owned.protocol()));
        self.delete(message)
            .await
            .map_err(|source| RoutingError::DelRoute { route: route.clone(), source })
    }

    /// Deletes exactly this one. It is no error when it is gone already.
    pub async fn del_stray(&self, stray: &Stray) -> Result<(), RoutingError> {
        let message = match stray.kind {
            ObjectKind::Rule => {
                RuleMessage::parse(stray.message.as_slice()).map(RouteNetlinkMessage::DelRule)
            }
            ObjectKind::Route => {
                RouteMessage::parse(stray.message.as_slice()).map(RouteNetlinkMessage::DelRoute)
            }
        };
        let message = message.map_err(|_| RoutingError::BrokenStray { stray: stray.clone() })?;
        self.delete(message)
            .await
            .map_err(|source| RoutingError::DelStray { stray: stray.clone(), source })
    }

    async fn delete(&self, message: RouteNetlinkMessage) -> Result<(), RequestError> {
        match self.socket.change(message, 0).await {
            // rules: ENOENT; routes: ESRCH; their table or device is gone, too
            Err(error)
                if is_one_of(
                    &error,
                    &[Errno::ENOENT, Errno::ESRCH, Errno::ENODEV, Errno::EAFNOSUPPORT],
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Adds many routes, without waiting for each; all are tried. The failures.
    pub async fn add_routes<'a>(
        &self,
        routes: impl IntoIterator<Item = &'a Route>,
    ) -> Vec<RoutingError> {
        failures(routes.into_iter().map(|route| self.add_route(route))).await
    }

    /// Adds many rules, without waiting for each; all are tried. The failures.
    pub async fn add_rules<'a>(
        &self,
        rules: impl IntoIterator<Item = &'a PolicyRule>,
    ) -> Vec<RoutingError> {
        failures(rules.into_iter().map(|rule| self.add_rule(rule))).await
    }
}

/// Interface names by index, as far as they were asked for.
#[derive(Default)]
struct DeviceNames(BTreeMap<u32, String>);

/// Changes under way together. Their acknowledgements have to fit into the receive buffer.
const AT_ONCE: usize = 32;

async fn failures<F: Future<Output = Result<(), RoutingError>>>(
    changes: impl Iterator<Item = F>,
) -> Vec<RoutingError> {
    stream::iter(changes)
        .buffered(AT_ONCE)
        .filter_map(|outcome| std::future::ready(outcome.err()))
        .collect()
        .await
}

const fn route_of(message: &RouteNetlinkMessage) -> Option<&RouteMessage> {
    match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    }
}

fn is_one_of(error: &RequestError, numbers: &[Errno]) -> bool {
    error.errno().is_some_and(|errno| numbers.contains(&Errno::from_raw(errno)))
}

#[cfg(test)]
mod tests;
