//! PostgreSQL itself: what is in force when `apply` returns.

mod ends;
mod histories;
mod serves;
mod settings;
#[path = "../support/mod.rs"]
mod support;

use support::LIMIT;

/// What this comes to, if it does in time.
async fn in_time<F: Future>(what: &str, work: F) -> F::Output {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("too late: {what}"))
}
