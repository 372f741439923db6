//! The kernel's descriptions of tables, chains, rules, sets and counters, in our types.

use netlink_packet_core::{DecodeError, NlasIterator, parse_u64_be};
use xxhash_rust::xxh3::Xxh3Default;

use super::{Base, Chain, Count, Rule, Set};
use crate::kernel::nfnetlink::{find, name, number, value};

// enum nft_gen_attributes
const GENERATION_ID: u16 = 1;
// enum nft_table_attributes
pub(super) const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
/// The table of a chain, rule, set or object, in each of their attribute lists.
pub(super) const OF_TABLE: u16 = 1;
// enum nft_chain_attributes
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
// enum nft_hook_attributes
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
// enum nft_rule_attributes
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USER_DATA: u16 = 7;
// libnftnl's enum nftnl_udata_rule_types
const USER_DATA_COMMENT: u8 = 0;
// enum nft_expr_attributes
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// Expressions whose data is what packets did to them.
const COUNTING: [&str; 3] = ["counter", "quota", "last"];
// enum nft_set_attributes
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_HANDLE: u16 = 16;
const SET_COUNT: u16 = 20;
// enum nft_set_desc_attributes
const DESCRIPTION_SIZE: u16 = 1;
// enum nft_set_flags
const ANONYMOUS: u32 = 1;
// enum nft_object_attributes
const OBJECT_NAME: u16 = 2;
pub(super) const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
/// `NFT_OBJECT_COUNTER`
pub(super) const COUNTER: u32 = 1;
// enum nft_counter_attributes
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

pub(super) fn generation(attributes: &[u8]) -> Result<Option<u32>, DecodeError> {
    find(attributes, GENERATION_ID)?.map(number).transpose()
}

/// The table's handle and flags.
pub(super) fn table(attributes: &[u8]) -> Result<(u64, u32), DecodeError> {
    let handle = find(attributes, TABLE_HANDLE)?.map_or(Ok(0), parse_u64_be)?;
    Ok((handle, number_of(attributes, TABLE_FLAGS)?))
}

/// The chain and its name, if it is in this table; without its rules.
pub(super) fn chain(
    attributes: &[u8],
    table: &str,
) -> Result<Option<(String, Chain)>, DecodeError> {
    if !is_of(attributes, table)? {
        return Ok(None);
    }
    let base = match find(attributes, CHAIN_HOOK)? {
        Some(hook) => Some(Base {
            kind: name_of(attributes, CHAIN_TYPE)?,
            hook: number_of(hook, HOOK_NUMBER)?,
            priority: number_of(hook, HOOK_PRIORITY)?.cast_signed(),
            devices: devices(hook)?,
            policy: number_of(attributes, CHAIN_POLICY)?,
        }),
        None => None,
    };
    Ok(Some((name_of(attributes, CHAIN_NAME)?, Chain { base, rules: Vec::new() })))
}

fn devices(hook: &[u8]) -> Result<Vec<String>, DecodeError> {
    let Some(several) = find(hook, HOOK_DEVICES)? else {
        return Ok(find(hook, HOOK_DEVICE)?.map(name).into_iter().collect());
    };
    NlasIterator::new(several).map(|device| Ok(name(value(&device?)))).collect()
}

/// The rule and its chain's name, if it is in this table.
pub(super) fn rule(attributes: &[u8], table: &str) -> Result<Option<(String, Rule)>, DecodeError> {
    if !is_of(attributes, table)? {
        return Ok(None);
    }
    let rule = Rule {
        handle: find(attributes, RULE_HANDLE)?.map_or(Ok(0), parse_u64_be)?,
        comment: find(attributes, RULE_USER_DATA)?.and_then(comment),
        digest: digest(find(attributes, RULE_EXPRESSIONS)?.unwrap_or_default())?,
    };
    Ok(Some((name_of(attributes, RULE_CHAIN)?, rule)))
}

/// The set and its name, if it is in this table and has one of its own.
pub(super) fn set(attributes: &[u8], table: &str) -> Result<Option<(String, Set)>, DecodeError> {
    let set = Set {
        key_type: number_of(attributes, SET_KEY_TYPE)?,
        key_len: number_of(attributes, SET_KEY_LEN)?,
        data_type: number_of(attributes, SET_DATA_TYPE)?,
        data_len: number_of(attributes, SET_DATA_LEN)?,
        flags: number_of(attributes, SET_FLAGS)?,
        size: match find(attributes, SET_DESCRIPTION)? {
            Some(description) => number_of(description, DESCRIPTION_SIZE)?,
            None => 0,
        },
        handle: find(attributes, SET_HANDLE)?.map_or(Ok(0), parse_u64_be)?,
        count: find(attributes, SET_COUNT)?.map(number).transpose()?,
    };
    let named = set.flags & ANONYMOUS == 0 && is_of(attributes, table)?;
    Ok(if named { Some((name_of(attributes, SET_NAME)?, set)) } else { None })
}

/// The counter and its name, if it is one and in this table.
pub(super) fn counter(
    attributes: &[u8],
    table: &str,
) -> Result<Option<(String, Count)>, DecodeError> {
    if !is_of(attributes, table)? || number_of(attributes, OBJECT_TYPE)? != COUNTER {
        return Ok(None);
    }
    let data = find(attributes, OBJECT_DATA)?.unwrap_or_default();
    let count = Count {
        packets: find(data, COUNTER_PACKETS)?.map_or(Ok(0), parse_u64_be)?,
        bytes: find(data, COUNTER_BYTES)?.map_or(Ok(0), parse_u64_be)?,
    };
    Ok(Some((name_of(attributes, OBJECT_NAME)?, count)))
}

fn is_of(attributes: &[u8], table: &str) -> Result<bool, DecodeError> {
    Ok(name_of(attributes, OF_TABLE)? == table)
}

fn name_of(attributes: &[u8], kind: u16) -> Result<String, DecodeError> {
    Ok(find(attributes, kind)?.map(name).unwrap_or_default())
}

fn number_of(attributes: &[u8], kind: u16) -> Result<u32, DecodeError> {
    find(attributes, kind)?.map_or(Ok(0), number)
}

/// The comment in what nft attaches to a rule: triples of type, length and bytes.
fn comment(mut user_data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = user_data {
        let (bytes, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == USER_DATA_COMMENT {
            return Some(name(bytes));
        }
        user_data = rest;
    }
    None
}

/// The hash of a rule's expressions, but for what they have counted.
fn digest(expressions: &[u8]) -> Result<u64, DecodeError> {
    let mut hash = Xxh3Default::new();
    for expression in NlasIterator::new(expressions) {
        let expression = value(&expression?);
        let kind = name_of(expression, EXPRESSION_NAME)?;
        hash.update(kind.as_bytes());
        hash.update(&[0]);
        if !COUNTING.contains(&kind.as_str()) {
            hash.update(find(expression, EXPRESSION_DATA)?.unwrap_or_default());
        }
    }
    Ok(hash.digest())
}
