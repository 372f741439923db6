//! The commands that make a change of the ingress table, as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::plan::{IngressChange, TableChange};
use crate::routing::Family;
use crate::ruleset::{Rule, TableNames, kept_echoes_set, kept_set};

pub(super) fn of_change(names: &TableNames, change: &IngressChange) -> String {
    let name = names.ingress();
    let mut commands = Commands { table: format!("netdev {name}"), text: String::new() };
    match change {
        IngressChange::Make(change) => commands.change(change),
        IngressChange::Remove => commands.remove_table(),
    }
    commands.text
}

/// Has these sets hold this and nothing else; the others of the ingress table nothing.
pub(super) fn of_elements(names: &TableNames, of_sets: &BTreeMap<&str, Vec<String>>) -> String {
    let table = format!("netdev {}", names.ingress());
    let mut commands = Commands { table: table.clone(), text: String::new() };
    let sets = Family::ALL.into_iter().flat_map(|of| [kept_set(of), kept_echoes_set(of)]);
    for set in sets {
        commands.line(format_args!("flush set {table} {set}"));
        for some in of_sets.get(set).into_iter().flat_map(|elements| elements.chunks(AT_ONCE)) {
            let elements = some.join(", ");
            commands.line(format_args!("add element {table} {set} {{ {elements} }}"));
        }
    }
    commands.text
}

/// How many elements are in one line.
const AT_ONCE: usize = 500;

struct Commands {
    table: String,
    text: String,
}

impl Commands {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A string takes whatever is written to it.
        let _ = writeln!(self.text, "{line}");
    }

    fn remove_table(&mut self) {
        let table = self.table.clone();
        self.line(format_args!("add table {table}"));
        self.line(format_args!("delete table {table}"));
    }

    fn change(&mut self, change: &TableChange) {
        let none = BTreeSet::new();
        let (fill, remove_chains, remove_declared) = match change {
            TableChange::Replace(wanted) => {
                self.remove_table();
                (wanted, &none, &none)
            }
            TableChange::Amend { fill, remove_chains, remove_declared } => {
                (fill.as_ref(), remove_chains, remove_declared)
            }
        };
        let table = self.table.clone();
        self.line(format_args!("add table {table}"));
        for counter in &fill.counters {
            self.line(format_args!("add counter {table} {counter}"));
        }
        for (name, declared) in &fill.declared {
            self.line(format_args!("add {} {table} {name} {declared}", declared.keyword()));
        }
        // All chains before any rule, for rules name chains; all emptied before any is removed.
        for (name, chain) in &fill.chains {
            match &chain.hook {
                Some(hook) => self.line(format_args!("add chain {table} {name} {{ {hook} }}")),
                None => self.line(format_args!("add chain {table} {name}")),
            }
            self.line(format_args!("flush chain {table} {name}"));
        }
        for name in remove_chains {
            self.line(format_args!("flush chain {table} {name}"));
        }
        for (name, chain) in &fill.chains {
            for Rule { text, comment, .. } in &chain.rules {
                self.line(format_args!("add rule {table} {name} {text} comment \"{comment}\""));
            }
        }
        for name in remove_chains {
            self.line(format_args!("delete chain {table} {name}"));
        }
        for name in remove_declared {
            self.line(format_args!("delete set {table} {name}"));
        }
    }
}
