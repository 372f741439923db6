//! Label selectors, as in the rest of Kubernetes, with bounds that admission rules need.

use std::collections::BTreeMap;

use kube::KubeSchema;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// Selects objects by their labels: all of matchLabels and matchExpressions must hold. An empty
/// selector selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<Requirement>,
}

/// What one label must be like.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[x_kube(validation = values_fit_operator())]
pub struct Requirement {
    /// The key of the label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label is compared: In, NotIn, Exists or DoesNotExist.
    pub operator: Operator,
    /// The values, at least one for In and NotIn, none for Exists and DoesNotExist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

fn values_fit_operator() -> Rule {
    rules::rule(
        "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
        "values must be given with operator In or NotIn, and left out with Exists or DoesNotExist",
    )
}

impl LabelSelector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::empty_selects_all("{}", true)]
    #[case::label(r#"{"matchLabels":{"app":"web"}}"#, true)]
    #[case::other_value(r#"{"matchLabels":{"app":"db"}}"#, false)]
    #[case::one_of_two(r#"{"matchLabels":{"app":"web","tier":"x"}}"#, false)]
    #[case::within(
        r#"{"matchExpressions":[{"key":"app","operator":"In","values":["db","web"]}]}"#,
        true
    )]
    #[case::not_within(
        r#"{"matchExpressions":[{"key":"app","operator":"In","values":["db"]}]}"#,
        false
    )]
    #[case::in_of_absent(
        r#"{"matchExpressions":[{"key":"tier","operator":"In","values":["x"]}]}"#,
        false
    )]
    #[case::not_in(
        r#"{"matchExpressions":[{"key":"app","operator":"NotIn","values":["web"]}]}"#,
        false
    )]
    #[case::not_in_of_absent(
        r#"{"matchExpressions":[{"key":"tier","operator":"NotIn","values":["x"]}]}"#,
        true
    )]
    #[case::exists(r#"{"matchExpressions":[{"key":"app","operator":"Exists"}]}"#, true)]
    #[case::exists_of_absent(r#"{"matchExpressions":[{"key":"tier","operator":"Exists"}]}"#, false)]
    #[case::absent(r#"{"matchExpressions":[{"key":"tier","operator":"DoesNotExist"}]}"#, true)]
    #[case::absent_of_present(
        r#"{"matchExpressions":[{"key":"app","operator":"DoesNotExist"}]}"#,
        false
    )]
    #[case::both(r#"{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"app","operator":"DoesNotExist"}]}"#, false)]
    fn a_selector_selects(#[case] selector: &str, #[case] selected: bool) {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let selector: LabelSelector = serde_json::from_str(selector).unwrap();
        assert_eq!(selector.matches(&labels), selected);
    }
}
