//! Rules are traceable: what a reason names, SPEC.md states.

use std::collections::BTreeSet;

#[test]
fn every_rule_that_a_reason_names_is_in_the_spec() {
    let spec = include_str!("../../../SPEC.md");
    let stated: BTreeSet<&str> = spec
        .lines()
        .filter_map(|line| line.strip_prefix("- **")?.split_once("**"))
        .map(|(id, _)| id)
        .collect();
    assert!(stated.len() > 20, "SPEC.md no longer lists rules as `- **A1** …`: {stated:?}");
    let named: BTreeSet<&str> = cluster::Reason::RULES.iter().copied().collect();
    let unknown: Vec<_> = named.difference(&stated).collect();
    assert!(unknown.is_empty(), "reasons name rules that SPEC.md does not state: {unknown:?}");
}
