//! Standbys of a PostgreSQL by itself, and of Patroni.

use super::{Book, plain};
use crate::{
    DonorKind,
    donor::{AUTO_CONF, BEGIN, END},
    steps::raised,
};
use adapters::service::Order;

impl Book<'_> {
    pub(super) fn stop_standbys(&mut self) {
        for (standby, server) in self.standbys() {
            self.note(&format!("Standby {}.", standby.name));
            self.tell_server(&server, &[Order::Disable]);
            if self.kind() == DonorKind::Patroni {
                // It leaves its server running; and whoever starts and resumes it would have that promoted.
                self.tell_server(&server, &[Order::Stop]);
            }
            self.halt(&server);
            self.close(&server, "");
        }
    }

    /// Starts them again, whether they were stopped or not.
    pub(super) fn start_standbys(&mut self) {
        let raised = raised(self.facts);
        for (standby, server) in self.standbys() {
            let name = &standby.name;
            self.note(&format!("Standby {name}."));
            self.line(&format!("if {}; then", Book::is_shut(&server)));
            if self.kind() == DonorKind::Patroni {
                // Still closed: where it is not paused it would be promoted, as nobody leads now.
                self.tell_server(&server, &[Order::Enable, Order::Start]);
                self.hold_member(name);
            }
            self.halt(&server);
            if self.kind() == DonorKind::Postgres && !raised.is_empty() {
                self.note("It needs as much as the shard had for what that wrote. When it has replayed that and made a");
                self.note(&format!(
                    "checkpoint, these lines may be taken out of {}/{AUTO_CONF}.",
                    server.data_dir
                ));
                self.set(&server, &plain(&format!("{BEGIN}\n{raised}{END}")));
                self.line(&Book::at(&server, &Book::without_files(&server, &[])));
            } else {
                self.line(&Book::at(&server, &Book::let_in(&server, &[])));
            }
            self.line("fi");
            self.tell_server(&server, &[Order::Enable]);
            self.start_by_service(&server);
            if self.kind() == DonorKind::Patroni {
                self.wake_member(name);
            }
        }
    }
}
