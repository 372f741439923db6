//! How figures are summed up and shown.

#![expect(clippy::print_stdout, reason = "figures are for reading")]

/// Middle, least and greatest of some figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    /// Of no figures, all are 0.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let sorted = sorted(figures);
        Self {
            median: quantile(&sorted, 0.5),
            least: quantile(&sorted, 0.0),
            greatest: quantile(&sorted, 1.0),
        }
    }
}

pub(crate) fn sorted(figures: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The figure that this part of all is not above; of two in the middle, the lower.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a short list"
    )]
    let place = (last as f64 * part).floor() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

/// Prints a heading.
pub(crate) fn heading(text: &str) {
    println!("\n{text}");
}

/// Prints one line as it is.
pub(crate) fn line(text: &str) {
    println!("  {text}");
}

/// Prints rows under a head, the first column to the left, the others to the right.
pub(crate) fn rows(head: &[&str], rows: &[Vec<String>]) {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in [&head].into_iter().chain(rows) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        println!("  {}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

/// A number of things a second, with the thousands set apart.
pub(crate) fn count(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1.02 (0.98–1.05)`.
pub(crate) fn ratio(spread: Spread) -> String {
    let Spread { median, least, greatest } = spread;
    format!("{median:.2} ({least:.2}–{greatest:.2})")
}

/// `1.2 ms (1.1–1.9)`, from seconds.
pub(crate) fn milliseconds(spread: Spread) -> String {
    let [median, least, greatest] =
        [spread.median, spread.least, spread.greatest].map(|seconds| seconds * 1e3);
    format!("{median:.1} ms ({least:.1}–{greatest:.1})")
}

/// Figures beside what they should be.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    rows: Vec<Vec<String>>,
}

impl Verdicts {
    /// A figure that should be at least so much.
    pub(crate) fn at_least(&mut self, what: &str, figure: f64, target: f64, unit: &str) {
        self.add(what, figure, &format!("≥ {target}{unit}"), unit, figure >= target);
    }

    /// A figure that should be at most so much.
    pub(crate) fn at_most(&mut self, what: &str, figure: f64, target: f64, unit: &str) {
        self.add(what, figure, &format!("≤ {target}{unit}"), unit, figure <= target);
    }

    /// A ratio that should be near 1.
    pub(crate) fn within(&mut self, what: &str, figure: f64, distance: f64) {
        let target = format!("1 ± {distance}");
        self.add(what, figure, &target, "", (figure - 1.0).abs() <= distance);
    }

    fn add(&mut self, what: &str, figure: f64, target: &str, unit: &str, met: bool) {
        let verdict = if met { "met" } else { "MISSED" };
        self.rows.push(vec![
            what.to_owned(),
            format!("{figure:.2}{unit}"),
            target.to_owned(),
            verdict.to_owned(),
        ]);
    }

    /// Prints them all.
    pub(crate) fn print(&self) {
        heading("Targets");
        rows(&["", "figure", "target", ""], &self.rows);
    }
}
