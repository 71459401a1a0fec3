//! The page of roles says what exploration sees. `BLESS=1` writes it anew.

use std::{fs, path::Path};

#[test]
fn the_graph_of_roles_is_fresh() {
    let moves = sim::roles::explore_moves();
    let page = sim::roles::page(&moves);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/roles.md");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &page).expect("written");
    }
    let checked_in = fs::read_to_string(&path).expect("docs/roles.md; BLESS=1 writes it");
    assert_eq!(checked_in, page, "docs/roles.md is stale: BLESS=1 writes it anew");
    // What must never be seen, whatever the page says: nobody becomes primary but a sync, or by setting
    // the shard up (rules D1, G1), and a deposed peer does not come back by a takeover (rule X1).
    for seen in moves {
        let from = ["unknown", "unassigned", "sync"].contains(&seen.from);
        assert!(seen.to != "primary" || from, "{seen:?}");
        let back = seen.from != "deposed" || !["primary", "sync"].contains(&seen.to);
        assert!(back, "{seen:?}");
    }
}
