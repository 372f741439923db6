//! Statements as nft reads them as JSON.

use std::borrow::Cow;

use nftables::expr::Expression;
use nftables::stmt::{SetOp, Statement};
use serde::Serialize;

/// A statement of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Loaded {
    /// One that the `nftables` crate has.
    Known(Statement<'static>),
    /// One that it has not.
    Metered(#[serde(with = "as_set")] Metered),
}

/// Puts an element with a statement of its own into a set, or finds it there, and asks that statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metered {
    /// What becomes of an element's time.
    pub op: SetOp,
    /// The element.
    pub elem: Expression<'static>,
    /// Which set.
    pub set: Cow<'static, str>,
    /// What is asked.
    pub stmt: [Statement<'static>; 1],
}

impl From<Statement<'static>> for Loaded {
    fn from(statement: Statement<'static>) -> Self {
        Self::Known(statement)
    }
}

/// Under the name that nft has for it.
mod as_set {
    use serde::Serializer;
    use serde::ser::SerializeMap;

    use super::Metered;

    pub(super) fn serialize<S: Serializer>(set: &Metered, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(1))?;
        map.serialize_entry("set", set)?;
        map.end()
    }
}
