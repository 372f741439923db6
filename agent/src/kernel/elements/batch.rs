//! One transaction that changes elements: how it is laid out, and whose fault a refusal is.

use std::net::IpAddr;
use std::time::Instant;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::NfTablesMessageType;
use shared::{PodIp, Vip};

use super::{
    Action, CATCH_ALL, DATA, ELEMENT, ElementsError, FLAGS, INET, KEY, LIST_ELEMENTS, LIST_SET,
    LIST_TABLE, NFTABLES, TIMEOUT, VALUE, address, kind,
};
use crate::kernel::nfnetlink::{Messages, Nfnetlink, Refusal, find, value};
use crate::pod_tables::{PodChanges, PodSet, PodStray};
use crate::routing::Family;
use crate::ruleset::{TableNames, unsure_key};
use crate::unsure::Unsure;

/// An attribute holds less than 64 KiB; the largest element, v6 to v6, takes 52 bytes.
const ELEMENTS_PER_MESSAGE: usize = 1200;

/// A transaction under construction.
pub(super) struct Batch<'a> {
    names: &'a TableNames,
    messages: Messages,
    /// What each message after the batch's begin does.
    contents: Vec<(Action, PodSet)>,
    elements: usize,
}

impl<'a> Batch<'a> {
    /// Removals first, so that a pod can be removed with its old VIP and added with its new one.
    pub(super) fn of(changes: &PodChanges, names: &'a TableNames, begun: Messages) -> Self {
        let PodChanges { unmap, map, unguard, guard, disown, know, unsure, strays } = changes;
        let mut batch = Self { names, messages: begun, contents: Vec::new(), elements: 0 };
        for set in PodSet::ALL {
            batch.put(Action::Remove, set, strays.iter().filter(|stray| stray.set == set), raw);
        }
        batch.put(Action::Remove, PodSet::Vip4, v4(unmap), pod);
        batch.put(Action::Remove, PodSet::Vip6, v6(unmap), pod);
        batch.put(Action::Remove, PodSet::Mapped4, v4(unguard), pod);
        batch.put(Action::Remove, PodSet::Mapped6, v6(unguard), pod);
        batch.put(Action::Remove, PodSet::Known4, v4(disown), pod);
        batch.put(Action::Remove, PodSet::Known6, v6(disown), pod);
        batch.put(Action::Add, PodSet::Vip4, map.iter().filter(|(pod, _)| pod.is_ipv4()), pod_vip);
        batch.put(Action::Add, PodSet::Vip6, map.iter().filter(|(pod, _)| !pod.is_ipv4()), pod_vip);
        batch.put(Action::Add, PodSet::Mapped4, v4(guard), pod);
        batch.put(Action::Add, PodSet::Mapped6, v6(guard), pod);
        batch.put(Action::Add, PodSet::Leaving4, v4(unguard), pod);
        batch.put(Action::Add, PodSet::Leaving6, v6(unguard), pod);
        batch.put(Action::Add, PodSet::Known4, v4(know), pod);
        batch.put(Action::Add, PodSet::Known6, v6(know), pod);
        if let Some(unsure) = unsure {
            batch.put_unsure(*unsure);
        }
        batch
    }

    /// Whatever is there goes, if it has not gone by itself.
    fn put_unsure(&mut self, unsure: Unsure) {
        let millis = match unsure {
            Unsure::No => None,
            Unsure::Until(end) => {
                let left = end.saturating_duration_since(Instant::now()).as_millis();
                Some(u64::try_from(left).unwrap_or(u64::MAX).max(1))
            }
            // No time at all is none that ends.
            Unsure::Always => Some(0),
        };
        for (family, set) in Family::ALL.into_iter().zip([PodSet::Unsure4, PodSet::Unsure6]) {
            self.begin(Action::Remove, set);
            let Some(millis) = millis else { continue };
            self.put(Action::Add, set, [unsure_key(family)].iter(), |messages, key| {
                put_address(messages, KEY, *key);
                messages.attribute(TIMEOUT, &millis.to_be_bytes());
            });
        }
    }

    fn begin(&mut self, action: Action, set: PodSet) {
        let (message, flags) = match action {
            Action::Add => (NfTablesMessageType::NewSetElement, NLM_F_REQUEST | NLM_F_CREATE),
            Action::Remove => (NfTablesMessageType::DeleteSetElement, NLM_F_REQUEST),
        };
        self.messages.message(kind(message), flags, INET, 0);
        self.messages.text(LIST_TABLE, set.table(self.names));
        self.messages.text(LIST_SET, set.name());
        self.contents.push((action, set));
    }

    pub(super) fn commit(self, netfilter: &mut Nfnetlink) -> Result<(), ElementsError> {
        let Self { names, messages, contents, elements } = self;
        let (messages, refusals) = netfilter
            .commit(messages, NFTABLES)
            .map_err(|source| ElementsError::Transact { elements, source })?;
        let Some(refusal) = refusals.into_iter().next() else { return Ok(()) };
        let index = usize::try_from(refusal.position).unwrap_or(usize::MAX).checked_sub(1);
        let Some(&(action, set)) = index.and_then(|index| contents.get(index)) else {
            return Err(ElementsError::Commit { elements, source: refusal.errno });
        };
        let table = set.table(names).to_owned();
        match culprit(&messages, &refusal) {
            Culprit::Set => Err(ElementsError::Missing { set, table }),
            Culprit::Element(element) => {
                Err(ElementsError::Refused { action, set, table, element, source: refusal.errno })
            }
        }
    }

    fn put<'i, T: 'i>(
        &mut self,
        action: Action,
        set: PodSet,
        elements: impl Iterator<Item = &'i T>,
        put_element: impl Fn(&mut Messages, &T),
    ) {
        let mut elements = elements.peekable();
        while elements.peek().is_some() {
            self.begin(action, set);
            let list = self.messages.nest(LIST_ELEMENTS);
            for element in elements.by_ref().take(ELEMENTS_PER_MESSAGE) {
                let nest = self.messages.nest(ELEMENT);
                put_element(&mut self.messages, element);
                self.messages.end(nest);
                self.elements += 1;
            }
            self.messages.end(list);
        }
    }
}

fn v4(pods: &[PodIp]) -> impl Iterator<Item = &PodIp> {
    pods.iter().filter(|pod| pod.is_ipv4())
}

fn v6(pods: &[PodIp]) -> impl Iterator<Item = &PodIp> {
    pods.iter().filter(|pod| !pod.is_ipv4())
}

fn pod(messages: &mut Messages, pod: &PodIp) {
    put_address(messages, KEY, pod.addr());
}

fn pod_vip(messages: &mut Messages, (pod, vip): &(PodIp, Option<Vip>)) {
    let held = match pod.addr() {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    put_address(messages, KEY, pod.addr());
    put_address(messages, DATA, vip.map_or(held, Vip::addr));
}

fn raw(messages: &mut Messages, PodStray { key, .. }: &PodStray) {
    if key.is_empty() {
        messages.number(FLAGS, CATCH_ALL);
    } else {
        put_data(messages, KEY, key);
    }
}

fn put_address(messages: &mut Messages, kind: u16, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => put_data(messages, kind, &addr.octets()),
        IpAddr::V6(addr) => put_data(messages, kind, &addr.octets()),
    }
}

fn put_data(messages: &mut Messages, kind: u16, bytes: &[u8]) {
    let data = messages.nest(kind);
    messages.attribute(VALUE, bytes);
    messages.end(data);
}

/// What a refusal is about.
enum Culprit {
    /// The table or the set is not there.
    Set,
    /// The element, or one of those in the message.
    Element(Option<IpAddr>),
}

fn culprit(messages: &Messages, refusal: &Refusal) -> Culprit {
    let Some(attribute) =
        refusal.offset.and_then(|offset| messages.attribute_at(refusal.position, offset))
    else {
        return Culprit::Element(None);
    };
    if !attribute.nested_flag() {
        return Culprit::Set; // the name of either
    }
    let key = find(value(&attribute), KEY).ok().flatten();
    let key = key.and_then(|key| find(key, VALUE).ok().flatten());
    Culprit::Element(key.and_then(address))
}
