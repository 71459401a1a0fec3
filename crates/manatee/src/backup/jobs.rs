//! The streams that are being sent.

use super::segment::{Cutter, Input, Segment};
use super::wire::{
    JobState, JobStatus, Offer, SnapshotInfo, SnapshotRequest, StreamRequest, StreamStarted,
};
use adapters::clock;
use async_trait::async_trait;
use cluster::{Millis, Monotonic};
use std::{
    any::Any,
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Where streams come from: a dataset with its snapshots.
#[async_trait]
pub trait Outlet: Send + Sync + 'static {
    /// What can be had.
    async fn offer(&self) -> Result<Offer, Refusal>;

    /// Makes a new snapshot.
    async fn snapshot(&self, request: &SnapshotRequest) -> Result<SnapshotInfo, Refusal>;

    /// Begins to send.
    async fn open(&self, request: &StreamRequest) -> Result<Outgoing, Refusal>;
}

/// A stream that has begun.
pub struct Outgoing {
    /// The snapshot that it brings.
    pub snapshot: SnapshotInfo,
    /// About how long it will be, in bytes, where that is known.
    pub estimate: Option<u64>,
    /// The stream.
    pub input: Input,
    /// Kept as long as the stream, such as a hold of the snapshot.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// What is asked for is at odds with how things are.
    #[error("{0}")]
    Conflict(String),
    /// As many streams are sent as may be: try again later.
    #[error("{0} streams are being sent, which is as many as may be: try again later")]
    Busy(usize),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// What the service allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many streams are sent at once.
    pub streams: usize,
    /// Bytes a second that no stream exceeds.
    pub rate: Option<u64>,
    /// How long a stream may go unasked for before it is ended.
    pub idle: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { streams: 4, rate: None, idle: Millis(120_000) }
    }
}

/// How many streams that have ended are still listed.
const REMEMBERED: usize = 20;

/// All streams of a service.
pub struct Jobs {
    outlet: Arc<dyn Outlet>,
    limits: Limits,
    jobs: Mutex<BTreeMap<Uuid, Arc<Job>>>,
}

/// A stream.
struct Job {
    id: Uuid,
    request: StreamRequest,
    snapshot: SnapshotInfo,
    estimate: Option<u64>,
    rate: Option<u64>,
    started: Monotonic,
    progress: Mutex<Progress>,
    /// Locked for as long as a segment is made; nothing else waits for it.
    cursor: tokio::sync::Mutex<Option<Cursor>>,
}

#[derive(Debug)]
struct Progress {
    state: JobState,
    bytes: u64,
    newest: Monotonic,
}

/// Where a stream is.
struct Cursor {
    /// The number of the segment that was given out last, and the segment.
    given: Option<(u64, Segment)>,
    /// The one after it, which is being read. Nothing after the last.
    next: Option<JoinHandle<(Cutter, io::Result<Segment>)>>,
    _guard: Box<dyn Any + Send + Sync>,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if let Some(next) = &self.next {
            next.abort();
        }
    }
}

/// A segment that is given out.
pub(super) struct Given {
    pub segment: Segment,
    /// How long it was waited for.
    pub waited: Millis,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    /// No streams yet. Those that nobody asks for any more are ended by a task that ends with this.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn new(outlet: Arc<dyn Outlet>, limits: Limits) -> Arc<Jobs> {
        let jobs = Arc::new(Jobs { outlet, limits, jobs: Mutex::default() });
        let weak = Arc::downgrade(&jobs);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(limits.idle.0.max(4) / 4));
            loop {
                tick.tick().await;
                match weak.upgrade() {
                    Some(jobs) => jobs.end_the_idle(),
                    None => return,
                }
            }
        });
        jobs
    }

    /// Where its streams come from.
    pub(super) fn outlet(&self) -> &dyn Outlet {
        &*self.outlet
    }

    /// Begins a stream.
    pub(super) async fn start(&self, request: StreamRequest) -> Result<StreamStarted, Refusal> {
        self.refuse_one_too_many()?;
        let outgoing = self.outlet.open(&request).await?;
        let id = Uuid::new_v4();
        let now = clock::now();
        let rate = [self.limits.rate, request.rate].into_iter().flatten().min();
        let cursor = Cursor {
            given: None,
            next: Some(read(Cutter::new(outgoing.input))),
            _guard: outgoing.guard,
        };
        tracing::info!(
            stream = %id, receiver = request.receiver, snapshot = outgoing.snapshot.name,
            "a stream begins"
        );
        let started =
            StreamStarted { id, snapshot: outgoing.snapshot.clone(), estimate: outgoing.estimate };
        let job = Job {
            id,
            request,
            snapshot: outgoing.snapshot,
            estimate: outgoing.estimate,
            rate: rate.filter(|rate| *rate > 0),
            started: now,
            progress: Mutex::new(Progress { state: JobState::Sending, bytes: 0, newest: now }),
            cursor: tokio::sync::Mutex::new(Some(cursor)),
        };
        // Counted again: another one may have begun while this one was opened.
        let mut jobs = locked(&self.jobs);
        let sending = jobs.values().filter(|job| job.is_sending()).count();
        if sending >= self.limits.streams {
            return Err(Refusal::Busy(sending));
        }
        jobs.insert(id, Arc::new(job));
        forget_old(&mut jobs);
        Ok(started)
    }

    fn refuse_one_too_many(&self) -> Result<(), Refusal> {
        let sending = locked(&self.jobs).values().filter(|job| job.is_sending()).count();
        if sending >= self.limits.streams { Err(Refusal::Busy(sending)) } else { Ok(()) }
    }

    /// All streams, those that ended lately included.
    pub fn list(&self) -> Vec<JobStatus> {
        locked(&self.jobs).values().map(|job| job.status()).collect()
    }

    pub(super) fn status(&self, id: Uuid) -> Result<JobStatus, Refusal> {
        Ok(self.job(id)?.status())
    }

    /// Segment `index` of a stream: the one that was given out last, or the one after it.
    pub(super) async fn segment(&self, id: Uuid, index: u64) -> Result<Given, Refusal> {
        let job = self.job(id)?;
        job.touch();
        job.keep_to_the_rate(index).await;
        let given = job.segment(index).await;
        job.touch();
        given
    }

    /// Ends a stream at the wish of its receiver.
    pub(super) async fn end(&self, id: Uuid) -> Result<(), Refusal> {
        let job = self.job(id)?;
        job.finish(JobState::Failed { error: "the receiver ended it".to_owned() });
        *job.cursor.lock().await = None;
        Ok(())
    }

    fn job(&self, id: Uuid) -> Result<Arc<Job>, Refusal> {
        let jobs = locked(&self.jobs);
        let unknown = || {
            Refusal::NotFound(format!(
                "there is no stream {id}: it was not asked for too long, or this sitter was restarted; \
                 begin another"
            ))
        };
        jobs.get(&id).cloned().ok_or_else(unknown)
    }

    fn end_the_idle(&self) {
        let now = clock::now();
        let jobs: Vec<_> = locked(&self.jobs).values().cloned().collect();
        for job in jobs {
            // Locked: a segment is being made, so that it is not idle.
            let Ok(mut cursor) = job.cursor.try_lock() else { continue };
            let idle = now - locked(&job.progress).newest > self.limits.idle;
            if idle && cursor.is_some() {
                *cursor = None;
                let seconds = self.limits.idle.0 / 1000;
                job.finish(JobState::Failed { error: format!("not asked for in {seconds} s") });
            }
        }
    }
}

/// Keeps the newest of those that have ended.
fn forget_old(jobs: &mut BTreeMap<Uuid, Arc<Job>>) {
    let mut ended: Vec<_> = jobs
        .values()
        .filter(|job| !job.is_sending())
        .map(|job| (locked(&job.progress).newest, job.id))
        .collect();
    ended.sort_unstable();
    ended.reverse();
    for (_, id) in ended.into_iter().skip(REMEMBERED) {
        jobs.remove(&id);
    }
}

fn read(mut cutter: Cutter) -> JoinHandle<(Cutter, io::Result<Segment>)> {
    tokio::spawn(async move {
        let segment = cutter.next().await;
        (cutter, segment)
    })
}

impl Job {
    fn is_sending(&self) -> bool {
        locked(&self.progress).state == JobState::Sending
    }

    fn touch(&self) {
        locked(&self.progress).newest = clock::now();
    }

    /// Sets how it ended, unless it had ended before.
    fn finish(&self, state: JobState) {
        let mut progress = locked(&self.progress);
        if progress.state == JobState::Sending {
            match &state {
                JobState::Failed { error } => {
                    tracing::warn!(stream = %self.id, receiver = self.request.receiver, error,
                        "a stream ended before its end");
                }
                _ => tracing::info!(stream = %self.id, bytes = progress.bytes, "a stream was sent"),
            }
            progress.state = state;
        }
    }

    fn status(&self) -> JobStatus {
        let progress = locked(&self.progress);
        let elapsed = (progress.newest - self.started).0.max(1);
        let rate = progress.bytes.saturating_mul(1000) / elapsed;
        let left = self.estimate.map(|estimate| estimate.saturating_sub(progress.bytes));
        let sending = progress.state == JobState::Sending;
        JobStatus {
            id: self.id,
            receiver: self.request.receiver.clone(),
            snapshot: self.snapshot.name.clone(),
            part: self.request.part.clone(),
            state: progress.state.clone(),
            bytes_done: progress.bytes,
            bytes_estimate: self.estimate,
            rate,
            remaining: left.filter(|_| sending && rate > 0).map(|left| left / rate),
        }
    }

    /// Waits until this segment may be given out.
    async fn keep_to_the_rate(&self, index: u64) {
        let Some(rate) = self.rate else { return };
        let before = u128::from(index) * super::wire::SEGMENT as u128;
        let due = u64::try_from(before * 1000 / u128::from(rate)).unwrap_or(u64::MAX);
        let due = Monotonic(self.started.0.saturating_add(due));
        tokio::time::sleep(Duration::from_millis((due - clock::now()).0)).await;
    }

    async fn segment(&self, index: u64) -> Result<Given, Refusal> {
        let asked = clock::now();
        let mut slot = self.cursor.lock().await;
        let Some(cursor) = slot.as_mut() else { return Err(self.over()) };
        let newest = cursor.given.as_ref();
        if let Some((_, segment)) = newest.filter(|(number, _)| *number == index) {
            return Ok(Given { segment: segment.clone(), waited: Millis(0) });
        }
        let expected = newest.map_or(0, |(number, _)| number + 1);
        if index != expected {
            return Err(Refusal::Conflict(format!(
                "segment {index} cannot be had: the next one is {expected}, and only the one before it \
                 is kept"
            )));
        }
        let Some(next) = cursor.next.as_mut() else {
            return Err(Refusal::Conflict(format!(
                "the stream has no segment {index}: it is over"
            )));
        };
        // Awaited in its place: when this call is given up, the segment is still there for the next.
        let (cutter, segment) = match next.await {
            Ok((cutter, Ok(segment))) => (cutter, segment),
            Ok((_, Err(error))) => return Err(self.broken(&mut slot, &error.to_string())),
            Err(error) => return Err(self.broken(&mut slot, &error.to_string())),
        };
        cursor.next = segment.whole.is_none().then(|| read(cutter));
        cursor.given = Some((index, segment.clone()));
        locked(&self.progress).bytes += segment.bytes.len() as u64;
        if segment.whole.is_some() {
            self.finish(JobState::Done);
        }
        Ok(Given { segment, waited: clock::now() - asked })
    }

    fn broken(&self, slot: &mut Option<Cursor>, error: &str) -> Refusal {
        *slot = None;
        self.finish(JobState::Failed { error: error.to_owned() });
        Refusal::Failed(format!("the snapshot cannot be sent: {error}"))
    }

    fn over(&self) -> Refusal {
        match &locked(&self.progress).state {
            JobState::Failed { error } => {
                Refusal::Failed(format!("the stream is over: {error}; begin another"))
            }
            _ => Refusal::NotFound("the stream is over; begin another".to_owned()),
        }
    }
}
