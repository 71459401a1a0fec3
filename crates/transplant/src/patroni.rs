//! A Patroni cluster, asked and told over the REST API of its members.
//!
//! Contract: nothing here writes to Patroni's store but the pause, which a `patronictl pause` writes, too.

use crate::{DonorConfig, PatroniConfig, donor::Donor, plan::Facts, steps::until};
use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use cluster::Millis;
use saga::Tell;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// How long a question may take.
const QUERY_LIMIT: Millis = Millis(5_000);
/// What an answer may be long, in bytes.
const ANSWER: u64 = 1 << 20;

/// What a cluster of Patroni is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PatroniFacts {
    /// The member that has the leader key.
    pub leader: String,
    /// Whether that is the donor.
    pub is_donor: bool,
    /// Of each member, by its name, where its API is.
    pub members: BTreeMap<String, String>,
    /// Members whose API does not answer, and why.
    pub silent: BTreeMap<String, String>,
    /// Whether it was paused before.
    pub paused: bool,
    /// Whether a switchover will come by itself.
    pub switchover: bool,
    /// With which `postgresql.conf` the donor runs.
    pub config_file: String,
}

/// What a member says of the cluster (`/cluster`).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Cluster {
    /// Who belongs to it.
    pub members: Vec<Listed>,
    #[serde(default)]
    pub pause: bool,
    scheduled_switchover: Option<Value>,
}

/// A member of a cluster, as the cluster says.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Listed {
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: String,
    #[serde(default)]
    api_url: String,
    host: Option<String>,
    port: Option<u16>,
}

impl Listed {
    /// Where its server is, as far as it says so.
    pub fn server(&self) -> Option<(&str, u16)> {
        Some((self.host.as_deref()?, self.port?))
    }
}

/// What a member says of itself (`/patroni`).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Member {
    state: String,
    role: String,
    #[serde(default)]
    pause: bool,
    postmaster_start_time: Option<String>,
}

impl Cluster {
    /// Who has the leader key.
    fn leader(&self) -> Option<&str> {
        let leads = |member: &&Listed| matches!(member.role.as_str(), "leader" | "standby_leader");
        self.members.iter().find(leads).map(|member| member.name.as_str())
    }
}

/// Where the API of a member is, from what the cluster says of it.
pub(crate) fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/patroni").unwrap_or(url).to_owned()
}

/// A cluster of Patroni.
#[derive(Debug, Clone)]
pub(crate) struct Patroni {
    config: PatroniConfig,
    /// What is known of it.
    pub facts: PatroniFacts,
    limit: Millis,
}

impl Patroni {
    /// The cluster of a donor; `None` where the donor is none of Patroni's.
    pub fn of(facts: &Facts) -> Option<Patroni> {
        let config = facts.inventory.donor.patroni.clone()?;
        let limit = Millis(facts.inventory.limits.service_seconds * 1000);
        Some(Patroni { config, facts: facts.patroni.clone()?, limit })
    }

    /// The cluster that is reached so, and what it says of itself.
    ///
    /// # Errors
    /// When it does not answer, or has no leader.
    pub async fn reach(config: PatroniConfig) -> Result<(Patroni, Cluster)> {
        let facts = PatroniFacts {
            leader: String::new(),
            is_donor: false,
            members: BTreeMap::new(),
            silent: BTreeMap::new(),
            paused: false,
            switchover: false,
            config_file: String::new(),
        };
        let mut patroni = Patroni { config, facts, limit: QUERY_LIMIT };
        let cluster = patroni.cluster().await?;
        patroni.facts = PatroniFacts {
            leader: cluster.leader().context("the Patroni cluster has no leader")?.to_owned(),
            members: cluster.members.iter().map(|m| (m.name.clone(), base(&m.api_url))).collect(),
            paused: cluster.pause,
            switchover: cluster.scheduled_switchover.is_some(),
            ..patroni.facts
        };
        Ok((patroni, cluster))
    }

    /// The statement that gives `t` at the server of this member, and at no other.
    pub async fn started_as(&self, name: &str) -> Result<String> {
        let begun = self.member(name).await?.postmaster_start_time;
        let unknown = || format!("Patroni does not say when the server of {name} was started");
        Ok(started_at(&begun.with_context(unknown)?))
    }

    /// Asks or tells; the status of the answer, and its text.
    async fn call(
        &self,
        method: &'static str,
        url: String,
        body: Option<Value>,
        limit: Millis,
    ) -> Result<(u16, String)> {
        let mut agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(limit.0)))
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0);
        if let Some(ca) = &self.config.ca {
            let told = || format!("donor.patroni.ca: {ca}");
            let pem = fs::read(ca).with_context(told)?;
            let root = Certificate::from_pem(&pem).with_context(told)?;
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = TlsConfig::builder()
                .provider(TlsProvider::Rustls)
                .unversioned_rustls_crypto_provider(provider)
                .root_certs(RootCerts::new_with_certs(&[root]));
            agent = agent.tls_config(tls.build());
        }
        let mut request = ureq::http::Request::builder().method(method).uri(&url);
        if let (Some(user), Some(file)) = (&self.config.user, &self.config.password_file) {
            let password = fs::read_to_string(file);
            let password =
                password.with_context(|| format!("donor.patroni.password_file: {file}"))?;
            let word = BASE64_STANDARD.encode(format!("{user}:{}", password.trim_end()));
            request = request.header("Authorization", format!("Basic {word}"));
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let agent = ureq::Agent::new_with_config(agent.build());
        let answer = tokio::task::spawn_blocking(move || -> Result<(u16, String)> {
            let request = request.header("Content-Type", "application/json");
            let mut response = if method == "GET" {
                agent.run(request.body(())?)?
            } else {
                agent.run(request.body(body)?)?
            };
            let text = response.body_mut().with_config().limit(ANSWER).read_to_string()?;
            Ok((response.status().as_u16(), text))
        });
        answer.await?.with_context(|| format!("Patroni at {url} does not answer"))
    }

    async fn get<T: DeserializeOwned>(&self, base: &str, path: &str) -> Result<T> {
        let url = format!("{base}{path}");
        // Of a member that is not well the status says so, and the text is the same.
        let (_, text) = self.call("GET", url.clone(), None, QUERY_LIMIT).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("Patroni at {url} answers something unexpected: {text}"))
    }

    /// Where to ask for the cluster: the member that the inventory names, then all others.
    fn bases(&self) -> Vec<String> {
        let mut bases = vec![base(&self.config.url)];
        for url in self.facts.members.values() {
            if !bases.contains(url) {
                bases.push(url.clone());
            }
        }
        bases
    }

    /// The cluster, as the first member has it that answers.
    pub async fn cluster(&self) -> Result<Cluster> {
        let mut problems = Vec::new();
        for base in self.bases() {
            match self.get(&base, "/cluster").await {
                Ok(cluster) => return Ok(cluster),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        bail!("no member of the Patroni cluster answers: {}", problems.join("; "))
    }

    /// What a member says of itself.
    async fn member(&self, name: &str) -> Result<Member> {
        self.get(self.url(name)?, "/patroni").await
    }

    fn url(&self, name: &str) -> Result<&str> {
        let url = self.facts.members.get(name);
        url.map(String::as_str).with_context(|| format!("Patroni has no member {name}"))
    }

    /// Puts the cluster into maintenance mode, or takes it out of it, as `patronictl` does, and waits until
    /// every member has heard of it.
    pub async fn set_pause(&self, pause: bool, tell: &dyn Tell) -> Result<()> {
        if self.cluster().await?.pause != pause {
            let wanted = if pause { json!(true) } else { Value::Null };
            self.patch(&json!({ "pause": wanted })).await?;
        }
        self.wait(tell, async || {
            for name in self.facts.members.keys() {
                match self.member(name).await {
                    Ok(member) if member.pause == pause => {}
                    Ok(_) => return Ok(Err(format!("{name} has not heard of it yet"))),
                    Err(error) => return Ok(Err(format!("{error:#}"))),
                }
            }
            Ok(Ok(()))
        })
        .await
    }

    /// Makes sure that a member whose Patroni was just started is paused, whoever resumed the cluster since.
    pub async fn hold_again(&self, name: &str, tell: &dyn Tell) -> Result<()> {
        self.wait(tell, async || {
            match self.member(name).await {
                Ok(member) if member.pause => return Ok(Ok(())),
                Ok(_) => {}
                Err(error) => return Ok(Err(format!("{error:#}"))),
            }
            if !self.cluster().await?.pause {
                self.patch(&json!({ "pause": true })).await?;
            }
            Ok(Err(format!("{name} has not heard yet that it is paused")))
        })
        .await
    }

    /// Changes the dynamic configuration.
    async fn patch(&self, change: &Value) -> Result<()> {
        let mut problems = Vec::new();
        for base in self.bases() {
            let url = format!("{base}/config");
            match self.call("PATCH", url.clone(), Some(change.clone()), QUERY_LIMIT).await {
                Ok((200, _)) => return Ok(()),
                Ok((status, text)) => {
                    let remedy = if status == 401 || status == 403 {
                        ": give donor.patroni user and password_file"
                    } else {
                        ""
                    };
                    problems.push(format!("{url}: status {status}: {}{remedy}", text.trim_end()));
                }
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        bail!("the Patroni cluster cannot be told {change}: {}", problems.join("; "))
    }

    /// All members but the donor.
    pub fn standbys(&self) -> impl Iterator<Item = &str> {
        let names = self.facts.members.keys().map(String::as_str);
        names.filter(|&name| name != self.facts.leader)
    }

    /// Waits, as long as a server may take.
    pub async fn wait(
        &self,
        tell: &dyn Tell,
        look: impl AsyncFnMut() -> Result<Result<(), String>>,
    ) -> Result<()> {
        until(self.limit.0 / 1000, tell, look).await
    }

    /// Lets a member whose Patroni was just started run its server, as it does not by itself in a pause;
    /// `leads`: as the primary, with the leader key.
    pub async fn wake(&self, name: &str, leads: bool, tell: &dyn Tell) -> Result<()> {
        let url = format!("{}/restart", self.url(name)?);
        self.wait(tell, async || {
            let member = match self.member(name).await {
                Ok(member) => member,
                Err(error) => return Ok(Err(format!("{error:#}"))),
            };
            match member.state.as_str() {
                // Its words for that differ from version to version.
                "running" | "streaming" | "in archive recovery" => {}
                "stopped" | "crashed" | "start failed" | "stop failed" => {
                    let told = self.call("POST", url.clone(), Some(json!({})), self.limit).await?;
                    return Ok(Err(format!("{name} is told to start: {}", told.1.trim_end())));
                }
                state => return Ok(Err(format!("{name} is {state}"))),
            }
            if !leads {
                return Ok(Ok(()));
            }
            let cluster = self.cluster().await?;
            Ok(match (member.role.as_str(), cluster.leader()) {
                ("master" | "primary", Some(leader)) if leader == name => Ok(()),
                (role, leader) => {
                    let leader = leader.unwrap_or("nobody");
                    Err(format!("{name} runs as {role}, and the leader is {leader}"))
                }
            })
        })
        .await
    }

    /// The donor's Patroni is not there any more.
    pub async fn is_gone(&self) -> Result<()> {
        let name = &self.facts.leader;
        if let Ok(member) = self.member(name).await {
            bail!(
                "the service of {name} says that it was stopped, and its Patroni still answers ({})",
                member.state
            );
        }
        Ok(())
    }

    /// Nobody but the donor leads.
    fn check_leader(&self, cluster: &Cluster) -> Result<()> {
        match cluster.leader() {
            Some(leader) if leader != self.facts.leader => bail!(
                "{leader} leads the Patroni cluster, {} did: what {leader} took since is not in the \
                 recipient; stop the two from going apart before anything else",
                self.facts.leader
            ),
            _ => Ok(()),
        }
    }

    /// Nobody leads in the donor's place, as far as any member that answers knows.
    pub async fn has_no_other_leader(&self) -> Result<()> {
        match self.cluster().await {
            Ok(cluster) => self.check_leader(&cluster),
            Err(_) => Ok(()),
        }
    }

    /// It is as it was held: paused, and nobody leads in the donor's place. Where the donor is stopped, and
    /// there are no other members or they may be stopped too, nobody has to answer.
    pub async fn is_held(&self, stopped: bool, others_stopped: bool) -> Result<()> {
        let cluster = match self.cluster().await {
            Ok(cluster) => cluster,
            Err(_) if stopped && (others_stopped || self.standbys().next().is_none()) => {
                return Ok(());
            }
            Err(error) => {
                return Err(error.context(
                    "whether the Patroni cluster is still paused cannot be seen: let its members answer, or \
                     undo the transplant with `rollback`",
                ));
            }
        };
        self.check_leader(&cluster)?;
        if !cluster.pause {
            bail!(
                "the Patroni cluster was resumed: it would fail over when the donor is stopped; pause \
                 it again (`patronictl pause --wait`), or undo the transplant with `rollback`"
            );
        }
        if !stopped && cluster.leader().is_none() {
            bail!("the Patroni cluster has no leader: look at the log of {}", self.facts.leader);
        }
        Ok(())
    }
}

/// Looks at the cluster of a donor.
///
/// # Errors
/// When it does not answer, or has no leader.
pub(crate) async fn look(config: &DonorConfig, donor: &Donor) -> Result<Option<PatroniFacts>> {
    let Some(patroni) = &config.patroni else { return Ok(None) };
    let (mut patroni, _) = Patroni::reach(patroni.clone()).await?;
    patroni.facts.config_file = donor.sql("select current_setting('config_file')").await?;
    for name in patroni.facts.members.clone().into_keys() {
        match patroni.member(&name).await {
            Err(error) => {
                patroni.facts.silent.insert(name, format!("{error:#}"));
            }
            Ok(Member { postmaster_start_time: Some(begun), .. })
                if name == patroni.facts.leader =>
            {
                patroni.facts.is_donor = donor.sql(&started_at(&begun)).await? == "t";
            }
            Ok(_) => {}
        }
    }
    Ok(Some(patroni.facts))
}

/// Asks a server whether it was started then: it is the same by any other name, as addresses may be written
/// in more than one way.
fn started_at(begun: &str) -> String {
    format!("select pg_postmaster_start_time() = {}::timestamptz", crate::donor::literal(begun))
}
