//! Sees that clients are well, by the commands of the inventory.

use super::{Scene, until};
use async_trait::async_trait;
use cluster::Millis;
use saga::{Check, Outcome, Step, StepError, Tell, Undo};
use serde_json::json;
use std::sync::Arc;

pub(super) struct CheckClients(pub Arc<Scene>);

#[async_trait(?Send)]
impl Step for CheckClients {
    async fn check(&self) -> Result<Check, StepError> {
        Ok(Check::Ready)
    }

    async fn apply(&self, tell: &dyn Tell) -> Result<(), StepError> {
        let inventory = &self.0.facts.inventory;
        let seconds = inventory.limits.client_seconds;
        for client in &inventory.clients {
            until(seconds, tell, async || {
                let exec = client.host.shell(None, &client.command, &[])?;
                Ok(match exec.limit(Millis(seconds * 1000)).run().await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        let error = anyhow::Error::from(error);
                        Err(format!("client {}: {error:#}", client.name))
                    }
                })
            })
            .await?;
        }
        Ok(())
    }

    async fn verify(&self) -> Result<Outcome, StepError> {
        let names = self.0.facts.inventory.clients.iter().map(|client| &client.name);
        Ok(json!({ "clients": names.collect::<Vec<_>>() }))
    }

    async fn undo(&self, _: Undo, _: &dyn Tell) -> Result<(), StepError> {
        Ok(())
    }
}
