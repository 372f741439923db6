//! The report as text for a person.

use std::fmt;

use super::{CounterReport, Report, TableReport, VipReport};

/// More pods than this are counted rather than listed; `--output json` lists all.
const SHOWN: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tables, vips, held, dropped, notes } = self;
        for TableReport { name, present, chains } in tables {
            match present {
                true => writeln!(f, "table inet {name}: {chains} chains")?,
                false => writeln!(f, "table inet {name}: MISSING")?,
            }
        }
        for vip in vips {
            writeln!(f, "\n{vip}")?;
        }
        if !held.is_empty() {
            writeln!(f, "\nheld, for want of a VIP of the family")?;
            listed(f, held)?;
        }
        if !dropped.is_empty() {
            writeln!(f, "\ndropped packets")?;
        }
        for CounterReport { table, name, what, packets, bytes: _ } in dropped {
            writeln!(f, "  {packets:>10}  {table}/{name}: {what}")?;
        }
        if !notes.is_empty() {
            writeln!(f, "\nnotes")?;
        }
        notes.iter().try_for_each(|note| writeln!(f, "  ! {note}"))
    }
}

impl fmt::Display for VipReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, route_id, here, table: _, rules, routes, pods } = self;
        write!(f, "VIP {vip}  ")?;
        match route_id {
            Some(id) => write!(f, "route id {id}, {}", if *here { "here" } else { "elsewhere" })?,
            None => f.write_str("no route id")?,
        }
        for rule in rules {
            write!(f, "\n  rule   {rule}")?;
        }
        for route in routes {
            write!(f, "\n  route  {route}")?;
        }
        writeln!(f, "\n  pods   {}", pods.len())?;
        listed(f, pods)
    }
}

fn listed(f: &mut fmt::Formatter<'_>, pods: &[String]) -> fmt::Result {
    for pod in pods.iter().take(SHOWN) {
        writeln!(f, "    {pod}")?;
    }
    if pods.len() > SHOWN {
        writeln!(f, "    and {} more", pods.len() - SHOWN)?;
    }
    Ok(())
}
