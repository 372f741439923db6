//! The commands that make a change of tables, in an order that nft accepts.

mod batch;

use nftables::schema::{
    Chain as NfChain, Counter, FlushObject, Map, NfCmd, NfListObject, Set, SetFlag, SetType,
    SetTypeValue, Table as NfTable,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

pub(super) use batch::Batch;

use crate::plan::{TableChange, TablesChange};
use crate::routing::Family;
use crate::ruleset::{
    BURST_SECONDS, Chain, Declared, DeclaredKind, HookKind, HookPoint, LEAVING_SECONDS, TableNames,
};

const FAMILY: NfFamily = NfFamily::INet;

pub(super) fn of_change(names: &TableNames, change: &TablesChange) -> Batch {
    let TablesChange { main, guard } = change;
    let mut batch = Batch::default();
    for (name, change) in [(&names.main, main), (&names.guard, guard)] {
        if let Some(change) = change {
            change_table(&mut batch, name, change);
        }
    }
    batch
}

pub(super) fn of_removal(names: &TableNames) -> Batch {
    let mut batch = Batch::default();
    remove_table(&mut batch, FAMILY, &names.main);
    remove_table(&mut batch, FAMILY, &names.guard);
    remove_table(&mut batch, NfFamily::NetDev, names.ingress());
    batch
}

fn table(family: NfFamily, name: &str) -> NfListObject<'static> {
    NfListObject::Table(NfTable { family, name: name.to_owned().into(), handle: None })
}

/// nft 1.0.6 has no `destroy` in JSON: what is added first can be deleted without an error.
fn remove_table(batch: &mut Batch, family: NfFamily, name: &str) {
    batch.add(table(family, name));
    batch.delete(table(family, name));
}

fn change_table(batch: &mut Batch, name: &str, change: &TableChange) {
    let none = std::collections::BTreeSet::default();
    let (fill, remove_chains, remove_declared) = match change {
        TableChange::Replace(wanted) => {
            remove_table(batch, FAMILY, name);
            batch.add(table(FAMILY, name));
            (wanted, &none, &none)
        }
        TableChange::Amend { fill, remove_chains, remove_declared } => {
            (fill.as_ref(), remove_chains, remove_declared)
        }
    };
    for counter in &fill.counters {
        batch.add(NfListObject::Counter(Counter {
            family: FAMILY,
            table: name.to_owned().into(),
            name: (*counter).into(),
            handle: None,
            packets: None,
            bytes: None,
        }));
    }
    for (declared_name, declared) in &fill.declared {
        batch.add(declaration(name, declared_name, *declared));
    }
    // All chains before any rule, for rules name chains; all chains emptied before any is removed.
    for (chain, content) in &fill.chains {
        batch.add(NfListObject::Chain(chain_of(name, chain, content)));
        batch.add_cmd(NfCmd::Flush(FlushObject::Chain(bare_chain(name, chain))));
    }
    for chain in remove_chains {
        batch.add_cmd(NfCmd::Flush(FlushObject::Chain(bare_chain(name, chain))));
    }
    for (chain, content) in &fill.chains {
        for rule in &content.rules {
            batch.add_rule(FAMILY, name, chain, rule);
        }
    }
    for chain in remove_chains {
        batch.delete(NfListObject::Chain(bare_chain(name, chain)));
    }
    for declared in remove_declared {
        // nft deletes maps by the name of sets, too.
        batch.delete(NfListObject::Set(Box::new(set(name, declared, Family::V4))));
    }
}

fn bare_chain(table: &str, chain: &str) -> NfChain<'static> {
    NfChain {
        family: FAMILY,
        table: table.to_owned().into(),
        name: chain.to_owned().into(),
        ..NfChain::default()
    }
}

fn chain_of(table: &str, chain: &str, content: &Chain) -> NfChain<'static> {
    let mut made = bare_chain(table, chain);
    if let Some(hook) = &content.hook {
        made._type = Some(match hook.kind {
            HookKind::Nat => NfChainType::NAT,
            HookKind::Filter => NfChainType::Filter,
            HookKind::Route => NfChainType::Route,
        });
        made.hook = Some(match hook.point {
            HookPoint::Ingress => NfHook::Ingress,
            HookPoint::Output => NfHook::Output,
            HookPoint::Postrouting => NfHook::Postrouting,
            HookPoint::Prerouting => NfHook::Prerouting,
        });
        made.dev = hook.device.clone().map(Into::into);
        made.prio = Some(hook.priority);
        made.policy = Some(NfChainPolicy::Accept);
    }
    made
}

const fn address_type(family: Family) -> SetType {
    match family {
        Family::V4 => SetType::Ipv4Addr,
        Family::V6 => SetType::Ipv6Addr,
    }
}

const fn address(family: Family) -> SetTypeValue<'static> {
    SetTypeValue::Single(address_type(family))
}

fn set(table: &str, name: &str, family: Family) -> Set<'static> {
    Set {
        family: FAMILY,
        table: table.to_owned().into(),
        name: name.to_owned().into(),
        set_type: address(family),
        ..Set::default()
    }
}

fn declaration(table: &str, name: &str, declared: Declared) -> NfListObject<'static> {
    let Declared { kind, family, size } = declared;
    let size = (size != 0).then_some(size);
    match kind {
        DeclaredKind::Set => NfListObject::Set(Box::new(Set { size, ..set(table, name, family) })),
        // Of the ingress table, whose declarations are loaded as text.
        DeclaredKind::Fragments | DeclaredKind::Connections | DeclaredKind::Echoes => {
            NfListObject::Set(Box::new(set(table, name, family)))
        }
        DeclaredKind::Passing => NfListObject::Set(Box::new(Set {
            size,
            flags: Some([SetFlag::Timeout].into_iter().collect()),
            timeout: Some(LEAVING_SECONDS),
            ..set(table, name, family)
        })),
        // nft 1.0.6 does not read `dynamic` as JSON, and adds it where a rule fills the set.
        DeclaredKind::Bursts => NfListObject::Set(Box::new(Set {
            size,
            flags: Some([SetFlag::Timeout].into_iter().collect()),
            timeout: Some(BURST_SECONDS),
            set_type: SetTypeValue::Concatenated(
                [SetType::InetProto, address_type(family), SetType::InetService].to_vec().into(),
            ),
            ..set(table, name, family)
        })),
        DeclaredKind::Map => NfListObject::Map(Box::new(Map {
            family: FAMILY,
            table: table.to_owned().into(),
            name: name.to_owned().into(),
            set_type: address(family),
            map: address(family),
            size,
            ..Map::default()
        })),
    }
}
