//! Commands of one transaction, as nft reads them as JSON.

use nftables::schema::{NfCmd, NfListObject};
use nftables::types::NfFamily;
use serde::Serialize;

use crate::ruleset::{Loaded, Rule};

/// Commands, in order.
#[derive(Debug, Default, Serialize)]
pub(in crate::kernel::nft) struct Batch {
    nftables: Vec<Command>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Command {
    Known(NfCmd<'static>),
    /// Rules have statements that the `nftables` crate has not.
    Rule {
        add: OfRule,
    },
}

#[derive(Debug, Serialize)]
struct OfRule {
    rule: AddedRule,
}

#[derive(Debug, Serialize)]
struct AddedRule {
    family: NfFamily,
    table: String,
    chain: String,
    expr: Vec<Loaded>,
    comment: String,
}

impl Batch {
    pub(super) fn add(&mut self, object: NfListObject<'static>) {
        self.add_cmd(NfCmd::Add(object));
    }

    pub(super) fn delete(&mut self, object: NfListObject<'static>) {
        self.add_cmd(NfCmd::Delete(object));
    }

    pub(super) fn add_cmd(&mut self, command: NfCmd<'static>) {
        self.nftables.push(Command::Known(command));
    }

    pub(super) fn add_rule(&mut self, family: NfFamily, table: &str, chain: &str, rule: &Rule) {
        let rule = AddedRule {
            family,
            table: table.to_owned(),
            chain: chain.to_owned(),
            expr: rule.statements.clone(),
            comment: rule.comment.clone(),
        };
        self.nftables.push(Command::Rule { add: OfRule { rule } });
    }
}
