//! A donor that is a Patroni cluster, as its REST API tells of it.

use super::{Asking, Draft, Lead, server::Server};
use crate::{
    PatroniConfig,
    patroni::{Listed, Patroni},
};
use adapters::service::Host;
use anyhow::{Context, Result};

/// Where its database usually is.
const DATA_DIR: &str = "/var/lib/postgresql/15/main";

/// The draft of an inventory whose donor is the leader of a cluster.
pub(super) async fn draft(asking: &Asking, config: &PatroniConfig) -> Result<Draft> {
    let (patroni, cluster) = Patroni::reach(config.clone()).await?;
    let leader = cluster.members.iter().find(|member| member.name == patroni.facts.leader);
    let leader = leader.context("the leader is a member")?;
    let nowhere = || format!("Patroni does not say where the server of {} is", leader.name);
    let (address, port) = leader.server().with_context(nowhere)?;
    let mut lead = Lead::ask(asking, address, port).await;
    if let Ok((server, _)) = &lead.asked
        && let Err(problem) = is_it(&patroni, leader, server).await
    {
        lead.is_another(format!("{problem:#}"));
    }

    let mut draft = Draft::of(&format!("Patroni at {}{}", config.url, lead.told()));
    draft.line("");
    draft.note(&format!("Its leader is {}.", leader.name));
    if leader.role == "standby_leader" {
        draft.unknown("it follows a server outside: it cannot be moved before it is promoted");
    }
    if cluster.pause {
        draft.note("It is paused: a rollback leaves it so.");
    }
    if patroni.facts.switchover {
        draft.unknown("a switchover is scheduled: cancel it, or draft again when it is over");
    }
    draft.lead("patroni", &lead, asking, DATA_DIR);
    draft.unit(lead.unit(), "patroni", "its Patroni")?;
    draft.line("\n[donor.patroni]");
    draft.set("url", &config.url);
    let optional =
        [("user", &config.user), ("password_file", &config.password_file), ("ca", &config.ca)];
    for (field, value) in optional {
        if let Some(value) = value {
            draft.set(field, value);
        }
    }
    for member in cluster.members.iter().filter(|member| member.name != leader.name) {
        draft.member(member, &patroni, &lead, asking).await?;
    }
    Ok(draft)
}

/// That this server is the one that a member looks after.
async fn is_it(patroni: &Patroni, member: &Listed, server: &Server) -> Result<()> {
    let same = patroni.started_as(&member.name).await?;
    anyhow::ensure!(
        server.sql(&same).await? == "t",
        "the server on {} at port {} was started at another time than the one of {}",
        server.host,
        server.port,
        member.name
    );
    Ok(())
}

impl Draft {
    async fn member(
        &mut self,
        member: &Listed,
        patroni: &Patroni,
        lead: &Lead,
        asking: &Asking,
    ) -> Result<()> {
        // One that did not start yet may not say where its server is.
        let (address, port) = member.server().unwrap_or((&member.name, lead.port));
        self.line("\n[[donor.standbys]]");
        self.set("name", &member.name);
        let host = lead.place(address);
        self.host(host.as_ref(), address);
        let answers = async {
            let host: &Host = host.as_ref().context("its host was not asked")?;
            // What was said of the leader's socket is not about this one's.
            let asking = Asking { socket_dir: None, ..asking.clone() };
            let server = Server::find(&asking, host, port).await?;
            is_it(patroni, member, &server).await?;
            server.ask().await
        };
        let answers: Result<_> = answers.await;
        let unit = match answers {
            Ok(answers) => {
                self.set("data_dir", &answers.data_dir);
                answers.unit
            }
            Err(problem) => {
                self.unknown(&format!(
                    "data_dir, where that is another than the leader's ({problem:#})"
                ));
                None
            }
        };
        self.unit(unit.as_deref(), "patroni", "its Patroni")
    }
}
