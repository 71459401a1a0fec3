//! How PostgreSQL's own programs connect to another server, as text. Pure.

/// Finds out within seconds that a host has gone: without it, what waits for the next bytes of one that lost
/// its power, and so never said that it ends, waits for two hours.
pub(super) const KEEPALIVES: &str = "keepalives=1 keepalives_idle=5 keepalives_interval=2 \
     keepalives_count=3 tcp_user_timeout=10000";

/// For one who copies from there. The password is not for a command line, where everybody can read it.
pub(crate) fn to_copy_from(host: &str, port: u16, user: &str) -> String {
    let (host, user) = (quoted(host), quoted(user));
    format!("host={host} port={port} user={user} connect_timeout=10 {KEEPALIVES}")
}

/// Quotes a value for a connection string.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_hears_of_the_end_of_its_source() {
        let text = to_copy_from("10.0.0.1", 5432, "it's \\ me");
        assert_eq!(
            text,
            "host='10.0.0.1' port=5432 user='it\\'s \\\\ me' connect_timeout=10 keepalives=1 \
             keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000"
        );
    }
}
