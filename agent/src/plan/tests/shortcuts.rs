//! Rules of somebody else between ours are asked as before.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::damage::Damage;
use super::world::worlds;
use super::{Tolerance, act, check_fates, in_between, planned};
use crate::plan::Step;
use crate::routing::{Family, Foreign, ObjectKind, PolicyRule};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_shortcut_goes_past_a_rule_of_somebody_else(
        old in worlds(),
        new in worlds(),
        place in 1000..1254_u32,
    ) {
        let mut kernel = in_between(&old, &new, &Damage::default());
        let before = planned(&kernel, &new);
        let foreign = Foreign {
            kind: ObjectKind::Rule,
            family: Family::V4,
            place,
            overrides_ours: place < 1253,
            text: "from all to 10.1.2.3 lookup main".to_owned(),
        };
        kernel.foreign.insert(foreign.clone());
        let tolerance = Tolerance::between(&old, &new, &kernel);
        let steps = planned(&kernel, &new);
        act(&mut kernel, &steps, None, &tolerance)?;
        check_fates(&kernel, &new)?;
        let hides = |rule: &&PolicyRule| {
            rule.family == Family::V4 && foreign.overrides_ours && rule.skips(place)
        };
        prop_assert_eq!(kernel.rules.iter().find(hides), None);
        prop_assert_eq!(planned(&kernel, &new), vec![]);
        prop_assert!(foreign.overrides_ours || steps == before);
        // Once it is gone they are back.
        kernel.foreign.clear();
        for step in planned(&kernel, &new) {
            prop_assert!(matches!(&step, Step::AddRule(rule) if rule.is_shortcut()), "{step}");
            kernel.apply(&step).map_err(TestCaseError::fail)?;
        }
        let ruleset = new.ruleset();
        prop_assert_eq!(&kernel.rules, &new.desired(&ruleset).rules);
    }
}
