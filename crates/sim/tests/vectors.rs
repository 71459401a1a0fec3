//! A few dozen recorded behaviours of the original, chosen so that together they show every kind of
//! input in every role: ours must be the same after each step.

#[test]
fn recorded_behaviour_of_the_original_is_matched() {
    let vectors = sim::vectors::parse(include_str!("vectors/original.jsonl")).expect("vectors");
    assert!(vectors.len() >= 24, "too few vectors to mean anything: {}", vectors.len());
    let differences: Vec<String> = vectors
        .iter()
        .filter_map(|vector| sim::vectors::check(vector).err())
        .map(|difference| difference.to_string())
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
