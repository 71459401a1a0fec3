//! Scenarios with golden output. `BLESS=1` rewrites what they print, as `manatee sim script --bless`
//! does.

use std::{fs, path::Path};

#[test]
fn scenarios_print_what_they_printed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let bless = std::env::var_os("BLESS").is_some();
    let mut seen = 0;
    for entry in fs::read_dir(&directory).expect("the directory of scripts") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a script");
        assert!(text.starts_with("# "), "{} does not say what it shows", path.display());
        let (output, met) = sim::script::run(&text);
        let golden = path.with_extension("out");
        if bless {
            fs::write(&golden, &output).expect("written");
        }
        let expected = fs::read_to_string(&golden).expect("what it printed; BLESS=1 writes it");
        assert_eq!(output, expected, "{}", path.display());
        assert!(met, "{output}");
        seen += 1;
    }
    assert!(seen >= 3, "only {seen} scenarios");
}
