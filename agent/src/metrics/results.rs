//! What comes of results of CNI plugins.

use std::fmt::{self, Write};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::gauge;
use crate::sources::cni_results::Ignored;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: Ignored,
}

impl Ignored {
    const ALL: [Self; 6] = [
        Self::Broken,
        Self::Foreign,
        Self::TooLarge,
        Self::NotAFile,
        Self::Unreadable,
        Self::TooMany,
    ];
}

impl EncodeLabelValue for Ignored {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Broken => "broken",
            Self::Foreign => "foreign",
            Self::TooLarge => "too_large",
            Self::NotAFile => "not_a_file",
            Self::Unreadable => "unreadable",
            Self::TooMany => "too_many",
        })
    }
}

/// Numbers of files. Cheap to clone: clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ResultMetrics {
    known: Gauge,
    ignored: Family<ByReason, Counter>,
}

impl ResultMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // Alerts on an increase need the zero before it.
        for reason in Ignored::ALL {
            drop(metrics.ignored.get_or_create(&ByReason { reason }));
        }
        let registry = registry.sub_registry_with_prefix("egress_agent_cni_results");
        registry.register(
            "known",
            "Results of CNI plugins on this node that are understood",
            metrics.known.clone(),
        );
        registry.register(
            "ignored",
            "Files among the results that were passed over each time they were read",
            metrics.ignored.clone(),
        );
        metrics
    }

    /// So many results are understood.
    pub fn known(&self, count: usize) {
        self.known.set(gauge(count));
    }

    /// A file was passed over.
    pub fn ignored(&self, reason: Ignored) {
        self.ignored.get_or_create(&ByReason { reason }).inc();
    }

    #[cfg(test)]
    pub(crate) fn count_of(&self, reason: Ignored) -> u64 {
        self.ignored.get_or_create(&ByReason { reason }).get()
    }
}
