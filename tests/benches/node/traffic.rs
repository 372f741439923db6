//! How much gets through: all variants in turns, each round in the opposite order of the one
//! before, so that whatever else the machine does disturbs all of them alike.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{Destinations, Load};

use crate::plain::BackEnd;
use crate::table::{self, Spread, Verdicts, count, ratio};
use crate::variants::{Pod, Stage, Variant, build_all};

/// What is counted.
struct Measure {
    what: &'static str,
    turn: Duration,
    take: fn(&Load<'_>, Duration) -> Result<Taken>,
}

/// A figure, and what may have spoiled it: the part dropped by the receiver, or failures.
struct Taken {
    per_second: f64,
    /// The same for a second of processor time, where that is known.
    per_second_of_work: Option<f64>,
    spoiled: f64,
}

impl Taken {
    const fn of(per_second: f64) -> Self {
        Self { per_second, per_second_of_work: None, spoiled: 0.0 }
    }
}

const MEASURES: [Measure; 6] = [
    Measure {
        what: "packets/s (UDP, 16 bytes, 4 connections, sent by one processor, counted outside)",
        turn: Duration::from_millis(300),
        take: |load, duration| {
            let packets = load.packets(duration)?;
            Ok(Taken {
                per_second: packets.received,
                per_second_of_work: Some(packets.per_second_of_work),
                spoiled: packets.dropped_by_receiver,
            })
        },
    },
    Measure {
        what: "connections/s, many destinations (TCP: connect, 1 byte there, 16 back, reset; 2 clients)",
        turn: Duration::from_millis(300),
        take: |load, duration| connections(load, duration, Destinations::Many),
    },
    Measure {
        what: "connections/s, one destination (the same)",
        turn: Duration::from_millis(300),
        take: |load, duration| connections(load, duration, Destinations::One),
    },
    Measure {
        what: "answers/s (UDP, 16 bytes, sent outside by one processor, counted by the pod)",
        turn: Duration::from_millis(300),
        take: |load, duration| Ok(Taken::of(load.replies(duration)?)),
    },
    Measure {
        what: "round trips/s, TCP (one connection, 1 byte, both ends on one processor)",
        turn: Duration::from_millis(200),
        take: |load, duration| Ok(Taken::of(load.tcp_round_trips(duration)?)),
    },
    Measure {
        what: "round trips/s, UDP (one connection, both ends on one processor)",
        turn: Duration::from_millis(200),
        take: |load, duration| Ok(Taken::of(load.udp_round_trips(duration)?)),
    },
];

fn connections(load: &Load<'_>, duration: Duration, to: Destinations) -> Result<Taken> {
    let connections = load.connections(duration, to)?;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let failed = connections.failed as f64;
    Ok(Taken { spoiled: failed, ..Taken::of(connections.succeeded) })
}

/// The figures of one measure: a row for each variant, a column for each round.
struct Figures {
    variants: Vec<Variant>,
    rates: Vec<Vec<f64>>,
}

impl Figures {
    fn row(&self, variant: Variant) -> Option<&[f64]> {
        let index = self.variants.iter().position(|other| *other == variant)?;
        Some(&self.rates[index])
    }

    /// A variant by another, round by round.
    fn ratio(&self, variant: Variant, base: Variant) -> Option<Spread> {
        let (row, base) = (self.row(variant)?, self.row(base)?);
        // A round in which the machine did not get to it at all says nothing.
        let ratios = row.iter().zip(base).map(|(rate, base)| rate / base);
        Some(Spread::of(ratios.filter(|ratio| ratio.is_finite())))
    }

    fn print(&self, what: &str) {
        table::heading(what);
        let rows: Vec<_> = self
            .variants
            .iter()
            .zip(&self.rates)
            .map(|(variant, rates)| {
                let spread = Spread::of(rates.iter().copied());
                let by = |base| self.ratio(*variant, base).map(ratio).unwrap_or_default();
                vec![
                    variant.to_string(),
                    count(spread.median),
                    format!("{}–{}", count(spread.least), count(spread.greatest)),
                    by(Variant::Masquerade),
                    by(Variant::TwoHops),
                ]
            })
            .collect();
        table::rows(&["", "median", "min–max", "÷ masquerade", "÷ two hops"], &rows);
    }
}

/// Builds, measures, prints.
pub(crate) fn measure(quick: bool, rounds: Option<usize>, verdicts: &mut Verdicts) -> Result<()> {
    let rounds = rounds.unwrap_or(if quick { 3 } else { 7 });
    let started = Instant::now();
    let stages = build_all(quick)?;
    table::heading(&format!(
        "Traffic: {} variants built in {:.0} s, {rounds} rounds; ratios are taken round by round",
        stages.iter().map(|stage| stage.variants.len()).sum::<usize>(),
        started.elapsed().as_secs_f64()
    ));
    for measure in &MEASURES {
        let (figures, of_work, spoiled) = take(&stages, measure, quick, rounds)?;
        figures.print(measure.what);
        if let Some(of_work) = of_work {
            limits(&figures, spoiled);
            of_work.print("packets for each second of the processor time spent on them");
            judge("packets/s", &figures, verdicts);
            judge("packets by processor time", &of_work, verdicts);
            judge_direct("packets/s", &figures, 0.95, verdicts);
        } else if !measure.what.starts_with("answers") {
            // Answers come over the holder, which takes a hop more than masquerade.
            let what = measure.what.split(" (").next().unwrap_or_default();
            judge_direct(what, &figures, 0.8, verdicts);
        }
        if spoiled > 0.0 && measure.what.starts_with("connections") {
            table::line(&format!("in one turn, {spoiled} connections failed"));
        }
    }
    Ok(())
}

/// The figures by time, those by processor time where there are any, and the worst of what may
/// have spoiled them.
fn take(
    stages: &[Stage],
    measure: &Measure,
    quick: bool,
    rounds: usize,
) -> Result<(Figures, Option<Figures>, f64)> {
    let turns: Vec<(&Stage, Variant)> = stages
        .iter()
        .flat_map(|stage| stage.variants.iter().map(move |variant| (stage, *variant)))
        .collect();
    let turn = if quick { measure.turn / 2 } else { measure.turn };
    let mut rates = vec![Vec::new(); turns.len()];
    let mut of_work = rates.clone();
    let mut spoiled = 0.0_f64;
    for round in 0..rounds {
        let forwards = 0..turns.len();
        let order: Vec<usize> =
            if round % 2 == 0 { forwards.collect() } else { forwards.rev().collect() };
        for index in order {
            let (stage, variant) = turns[index];
            let taken = (measure.take)(&stage.load(variant), turn)
                .with_context(|| format!("cannot measure {variant}"))?;
            rates[index].push(taken.per_second);
            of_work[index].extend(taken.per_second_of_work);
            spoiled = spoiled.max(taken.spoiled);
        }
    }
    let variants: Vec<_> = turns.into_iter().map(|(_, variant)| variant).collect();
    let of_work = of_work
        .iter()
        .all(|figures| figures.len() == rounds)
        .then(|| Figures { variants: variants.clone(), rates: of_work });
    Ok((Figures { variants, rates }, of_work, spoiled))
}

fn limits(figures: &Figures, dropped: f64) {
    let most = figures.row(Variant::Masquerade).unwrap_or_default().iter().copied();
    table::line(&format!(
        "the sender's processor is the limit; masquerade alone reaches {} packets/s here; the \
         receiver dropped at most {:.1} % in a turn",
        count(Spread::of(most).greatest),
        dropped * 100.0
    ));
}

fn judge(what: &str, figures: &Figures, verdicts: &mut Verdicts) {
    let ours = |pods| Variant::Ours { pods, other_vips: 0, pod: Pod::Mapped };
    let theirs = |pods| Variant::KubeEgress { back_end: BackEnd::Nft, pods, pod: Pod::Mapped };
    let ratio = |a, b| figures.ratio(a, b).map(|spread| spread.median);
    for pods in [1, 1000, 10_000, 100_000] {
        if let Some(figure) = ratio(ours(pods), Variant::TwoHops) {
            let what = format!("{what}, {pods} mapped, ÷ two plain hops");
            verdicts.at_least(&what, figure, 0.85, "");
        }
    }
    if let Some(figure) = ratio(ours(100_000), ours(1)) {
        verdicts.within(&format!("{what}, 100000 mapped ÷ 1 mapped"), figure, 0.1);
    }
    if let Some(figure) = ratio(ours(100_000), theirs(5000)) {
        let what = format!("{what}, ours at 100000 mapped ÷ kube-egress at 5000");
        verdicts.at_least(&what, figure, 20.0, "");
    }
}

fn judge_direct(what: &str, figures: &Figures, target: f64, verdicts: &mut Verdicts) {
    for variant in &figures.variants {
        let Variant::Direct { pod: Pod::Mapped, .. } = variant else { continue };
        if let Some(spread) = figures.ratio(*variant, Variant::Masquerade) {
            let what = format!("{what}, {variant}, ÷ masquerade");
            verdicts.at_least(&what, spread.median, target, "");
        }
    }
}
