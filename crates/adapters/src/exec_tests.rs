//! Commands, run.

use super::*;
use std::error::Error;

fn shell(script: &str) -> Exec {
    Exec::new("sh").arg("-c").arg(script)
}

#[tokio::test]
async fn output_input_and_environment() {
    let output = shell("cat; echo $LC_ALL-$HOME; echo note >&2")
        .stdin("in ")
        .run()
        .await
        .expect("a successful command");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "in C-\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "note\n");
}

#[tokio::test]
async fn a_failure_tells_command_status_and_output_but_no_secret() {
    let error =
        shell("echo wrong hush1; exit 3 # hush1").redact("hush1").run().await.expect_err("exit 3");
    let text = format!("{error}: {}", error.source().expect("a cause"));
    assert!(text.contains("sh -c echo wrong ***; exit 3"), "{text}");
    assert!(text.contains("exit status: 3"), "{text}");
    assert!(!text.contains("hush1"), "{text}");
}

#[tokio::test]
async fn a_late_command_is_killed_with_its_children() {
    let error =
        shell("sleep 600 & echo $!; wait").limit(Millis(300)).run().await.expect_err("too late");
    let ExecCause::Timeout { output, .. } = &error.cause else {
        panic!("{error}: {:?}", error.cause);
    };
    let exe = format!("/proc/{}/exe", output.trim());
    let ended = async {
        // One that has ended has no program, whoever waits for it or not.
        while std::fs::read_link(&exe).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), ended).await;
    assert!(waited.is_ok(), "{exe} is still there");
}

#[tokio::test]
async fn lines_end_with_either_character() {
    let mut lines = Vec::new();
    shell("printf 'a\\rb\\n\\nc\\n' >&2")
        .run_with(|line| lines.push(line.to_owned()))
        .await
        .expect("a successful command");
    assert_eq!(lines, ["a", "b", "c"]);
}

#[test]
fn long_output_keeps_both_ends() {
    let mut kept = Kept::default();
    kept.push(b"first");
    for _ in 0..300 {
        kept.push(&[b'.'; 8192]);
    }
    kept.push(b"last");
    let bytes = kept.bytes();
    assert!(bytes.starts_with(b"first") && bytes.ends_with(b"last"));
    assert!(bytes.len() <= 2 * KEPT);
}
