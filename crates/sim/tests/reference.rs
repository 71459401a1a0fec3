use std::fs;
#[test]
fn all() {
    let path = "/work/shared/conformance/reference.jsonl";
    let vs = sim::vectors::parse(&fs::read_to_string(path).unwrap()).unwrap();
    let mut fails = 0;
    for v in &vs {
        if let Err(d) = sim::vectors::check(v) {
            fails += 1;
            if fails < 12 {
                println!("{d}");
            }
        }
    }
    println!("{} passed, {} failed", vs.len() - fails, fails);
}
