//! The report as text for a person: first what is to be known at once, then VIP by VIP.

use std::fmt;

use super::{CounterReport, Report, TableReport, UnknownReport, VipReport};

/// More pods than this are counted rather than listed; `--output json` lists all.
const SHOWN: usize = 20;
/// How long a line of pods becomes.
const WIDTH: usize = 90;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tables, vips, held, unknown, dropped, notes } = self;
        for TableReport { family, name, present, chains } in tables {
            match present {
                true => writeln!(f, "table {family} {name}: {chains} chains")?,
                false => writeln!(f, "table {family} {name}: MISSING")?,
            }
        }
        writeln!(
            f,
            "VIPs: {}, here: {}; pods mapped: {}, held: {}; packets dropped: {}",
            vips.iter().filter(|vip| vip.route_id.is_some()).count(),
            vips.iter().filter(|vip| vip.here).count(),
            vips.iter().map(|vip| vip.pods.len()).sum::<usize>(),
            held.len(),
            dropped.iter().map(|counter| counter.packets).sum::<u64>(),
        )?;
        if !notes.is_empty() {
            writeln!(f, "\nnotes")?;
        }
        notes.iter().try_for_each(|note| writeln!(f, "  ! {note}"))?;
        for vip in vips {
            write!(f, "\n{vip}")?;
        }
        if !held.is_empty() {
            writeln!(f, "\nheld for want of a VIP of the family: {} pods", held.len())?;
            listed(f, held)?;
        }
        let UnknownReport { held, seconds, known } = unknown;
        if *held {
            write!(f, "\nnew connections of unknown pods are dropped")?;
            if let Some(seconds) = seconds {
                write!(f, " for {seconds:.0} s")?;
            }
            writeln!(f, ": a pod with a VIP may be among them; known: {} addresses", known.len())?;
            listed(f, known)?;
        }
        if !dropped.is_empty() {
            writeln!(f, "\ndropped packets")?;
        }
        for CounterReport { table, name, what, packets, bytes: _ } in dropped {
            writeln!(f, "  {packets:>10}  {table}/{name}: {what}")?;
        }
        Ok(())
    }
}

impl fmt::Display for VipReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, route_id, here, table, rules, routes, pods, .. } = self;
        write!(f, "VIP {vip}: ")?;
        match route_id {
            Some(id) => write!(f, "route id {id}")?,
            None => f.write_str("no route id")?,
        }
        f.write_str(if *here { ", here" } else { ", elsewhere" })?;
        if let Some(table) = table {
            write!(f, ", table {table}")?;
        }
        writeln!(f, ", pods: {}", pods.len())?;
        for rule in rules {
            writeln!(f, "  rule   {rule}")?;
        }
        for route in routes {
            writeln!(f, "  route  {route}")?;
        }
        if let Some(own) = &self.own_blocks {
            let open = self.open_blocks.as_ref();
            let open = open.map_or_else(|| "none".to_owned(), |open| format!("blocks {open}"));
            writeln!(f, "  direct with blocks {own}; new connections: {open}")?;
        }
        if self.passed_on_to > 0 {
            writeln!(f, "  passed on to other nodes: {}", self.passed_on_to)?;
        }
        listed(f, pods)
    }
}

fn listed(f: &mut fmt::Formatter<'_>, pods: &[String]) -> fmt::Result {
    let shown = &pods[..pods.len().min(SHOWN)];
    let mut line = String::new();
    for pod in shown {
        if !line.is_empty() && line.len() + pod.len() >= WIDTH {
            writeln!(f, "  pods  {line}")?;
            line.clear();
        }
        line = format!("{line} {pod}");
    }
    if !line.is_empty() {
        writeln!(f, "  pods  {line}")?;
    }
    if pods.len() > SHOWN {
        writeln!(f, "  and {} pods more, which --output json lists", pods.len() - SHOWN)?;
    }
    Ok(())
}
