//! One pod's life: the task that alone changes it. What is to be done is the sequence's to say; here it is begun, and
//! what became of it is told to the sequence.

mod account;

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use berth_cri::berth::v1::ImagePull;
use berth_sandbox_manager::sequence::{
    Action, Event, Found, Hook, PodStatus, ProbeKind, Sequence, Stage, Time,
};
use berth_sandbox_manager::{ContainerKind, ContainerState, PodView, SandboxPhase};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::directory::Key;
use crate::node::{self, Node};
use crate::record::{History, Plan, ProgressRecord};
use crate::telling::Telling;
use crate::timeline::{Span, Timeline};
use crate::work::{self, Outcome};
use crate::{Error, clock, plan, pull};

/// What is asked of a pod's task.
#[derive(Debug)]
pub(crate) enum Message {
    /// End it; the answer comes when it has ended. Without a grace the manifest's holds.
    Stop { grace: Option<Duration>, ended: oneshot::Sender<()> },
    /// Have more ephemeral containers: items of `ephemeralContainers`, and the documents that they refer to.
    AddEphemeral { items: Vec<Value>, configs: Vec<Value>, kept: oneshot::Sender<Result<(), Error>> },
    /// Remove all that is left of it. The task ends when that has worked.
    Remove { removed: oneshot::Sender<Result<(), Error>> },
}

pub(crate) struct Task {
    node: Arc<Node>,
    key: Key,
    plan: Arc<Plan>,
    sequence: Sequence,
    history: History,
    /// Counts what was written of these.
    step: u64,
    timeline: Timeline,
    status: PodStatus,
    mailbox: mpsc::Receiver<Message>,
    bell: Arc<Notify>,
    jobs: JoinSet<Outcome>,
    /// Hooks and starts under way, which the end of their container makes pointless.
    hooks: HashMap<(String, Hook), AbortHandle>,
    /// Attempts whose end is being looked into.
    ending: HashSet<(String, u32)>,
    /// Pulls under way, by container.
    pulls: HashMap<String, ImagePull>,
    telling: Telling,
    told: mpsc::Receiver<(String, ImagePull)>,
    /// The sandbox being made.
    sandbox_span: Option<usize>,
    /// Containers whose last pull failed.
    pull_failures: HashSet<String>,
    waiting_for_the_end: Vec<oneshot::Sender<()>>,
    /// When the sequence was asked last what is to be done.
    asked_at: Time,
    /// The last round of it.
    housekeeping: Option<AbortHandle>,
}

/// How often logs and volumes are looked at, as kubelet looks at logs.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// What a task is made from.
pub(crate) struct Beginning {
    pub(crate) key: Key,
    pub(crate) plan: Arc<Plan>,
    pub(crate) progress: Option<ProgressRecord>,
    pub(crate) mailbox: mpsc::Receiver<Message>,
    pub(crate) bell: Arc<Notify>,
}

impl Task {
    pub(crate) fn new(node: Arc<Node>, beginning: Beginning) -> Self {
        let Beginning { key, plan, progress, mailbox, bell } = beginning;
        let now = clock::boottime();
        let (telling, told) = Telling::new();
        let step = progress.as_ref().map_or(0, |progress| progress.step);
        let (sequence, history) = match progress {
            Some(mut progress) => {
                if progress.boot_id != node.boot_id && !progress.sequence.is_over() {
                    progress.sequence.rebooted(clock::since(plan.record.created_at), now);
                    progress.history.starts_anew();
                }
                (progress.sequence, progress.history)
            }
            None => (Sequence::new(plan::plan(&plan.pod), now), History::new(plan.record.created_at)),
        };
        let mut task = Self {
            status: sequence.status(),
            node,
            key,
            plan,
            sequence,
            history,
            step,
            timeline: Timeline::default(),
            mailbox,
            bell,
            jobs: JoinSet::new(),
            hooks: HashMap::new(),
            ending: HashSet::new(),
            pulls: HashMap::new(),
            telling,
            told,
            sandbox_span: None,
            pull_failures: HashSet::new(),
            waiting_for_the_end: Vec::new(),
            asked_at: now,
            housekeeping: None,
        };
        task.add_ephemeral();
        task
    }

    /// Says how things are, as far as they are known before anything is looked at.
    pub(crate) fn announce(&mut self) {
        self.remember();
        self.publish();
    }

    /// Until the pod is removed, or nobody can reach it any more.
    pub(crate) async fn run(mut self) {
        let actions = self.resume().await;
        self.settled(actions).await;
        let mut round = interval(HOUSEKEEPING);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What fell due since the sequence was asked, while something was written say, is due at once.
            let wake = self.sequence.wake_at(self.asked_at);
            let wake = wake.map(|at| Instant::now() + at.saturating_sub(clock::boottime()));
            let asleep = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // All of these are cancel safe.
            tokio::select! {
                message = self.mailbox.recv() => match message {
                    Some(message) => if self.take(message).await.is_break() { return },
                    None => return,
                },
                Some(done) = self.jobs.join_next() => match done {
                    Ok(outcome) => self.done(outcome).await,
                    // A hook that was cut off.
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!(%error, "a step of a pod panicked"),
                },
                Some((container, pull)) = self.told.recv() => self.tell(container, pull),
                () = self.bell.notified() => self.look().await,
                _ = round.tick(), if !self.sequence.is_over() => self.keep_house(),
                () = asleep => self.tick().await,
            }
        }
    }

    /// Of a pull that goes on still: what it said last may come after its end.
    fn tell(&mut self, container: String, pull: ImagePull) {
        let mut current = self.sequence.current();
        if current.any(|current| current.name == container && current.stage == Stage::Pulling) {
            self.pulls.insert(container, pull);
            self.publish();
        }
    }

    /// Goes on from what was written down, with what there is.
    async fn resume(&mut self) -> Vec<Action> {
        let view = self.view().filter(|view| view.sandbox.phase == SandboxPhase::Ready);
        let mut found = HashMap::new();
        let current: Vec<_> = self.sequence.current().map(|one| (one.name.to_owned(), one.attempt)).collect();
        for (name, attempt) in current {
            let container = view.as_ref().and_then(|view| node::attempt(view, &name, Some(attempt)));
            let state = match container.map(|container| &container.state) {
                Some(ContainerState::Running { .. }) => Found::Running,
                Some(ContainerState::Exited(exit)) => {
                    Found::Ended(work::last_words(&self.node, &self.plan, &name, attempt, exit.clone()).await)
                }
                Some(ContainerState::Creating | ContainerState::Created { .. }) | None => Found::Nothing,
            };
            found.insert((name, attempt), state);
        }
        let found = |name: &str, attempt: u32| {
            found.get(&(name.to_owned(), attempt)).cloned().unwrap_or(Found::Nothing)
        };
        self.asked_at = clock::boottime();
        self.sequence.resume(view.is_some(), found, self.asked_at)
    }

    /// The newest sandbox.
    fn view(&self) -> Option<Arc<PodView>> {
        self.node.sandboxes(&self.plan.record.uid).into_iter().next()
    }

    async fn take(&mut self, message: Message) -> ControlFlow<()> {
        match message {
            Message::Stop { grace, ended } => {
                self.waiting_for_the_end.push(ended);
                let grace = grace.unwrap_or(self.plan.pod.termination_grace_period);
                self.handle(Event::StopAsked { grace }).await;
            }
            Message::AddEphemeral { items, configs, kept } => {
                let added = self.extend_plan(items, configs).await;
                self.tick().await;
                // A caller that went away has its container all the same.
                drop(kept.send(added));
            }
            Message::Remove { removed } => {
                let result = self.remove().await;
                let done = result.is_ok();
                drop(removed.send(result));
                if done {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Here and not with the caller: two that add at once both add to what there is then.
    async fn extend_plan(&mut self, items: Vec<Value>, configs: Vec<Value>) -> Result<(), Error> {
        let mut record = self.plan.record.clone();
        record.ephemeral.extend(items);
        for config in configs {
            // One that was given before may be given again.
            if !record.configs.contains(&config) {
                record.configs.push(config);
            }
        }
        let plan = Plan::read(record)?;
        self.node.keep(&plan.record).await?;
        self.plan = Arc::new(plan);
        self.add_ephemeral();
        Ok(())
    }

    /// The sequence has those it does not know yet.
    fn add_ephemeral(&mut self) {
        for one in &self.plan.pod.ephemeral {
            self.sequence.add_ephemeral(plan::planned(&one.container, ContainerKind::Ephemeral));
        }
    }

    async fn remove(&mut self) -> Result<(), Error> {
        if !self.sequence.is_over() {
            return Err(Error::WrongState {
                what: format!("pod {}", self.plan.label()),
                state: "has not ended".to_owned(),
                ask: "remove",
            });
        }
        work::remove(&self.node, &self.plan).await?;
        self.node.directory.remove(&self.key);
        Ok(())
    }

    /// Looks at the sandbox for what the sequence does not know: ends.
    async fn look(&mut self) {
        let Some(view) = self.view() else { return self.handle(Event::SandboxLost).await };
        let live: Vec<_> = self
            .sequence
            .current()
            .filter(|current| {
                matches!(current.stage, Stage::StartingUp | Stage::GettingReady | Stage::Up | Stage::Ending)
            })
            .map(|current| (current.name.to_owned(), current.attempt))
            .collect();
        for (name, attempt) in live {
            let Some(container) = node::attempt(&view, &name, Some(attempt)) else { continue };
            if let ContainerState::Exited(exit) = &container.state
                && self.ending.insert((name.clone(), attempt))
            {
                let ended =
                    work::ended(Arc::clone(&self.node), Arc::clone(&self.plan), name, attempt, exit.clone());
                self.jobs.spawn(ended);
            }
        }
        if view.sandbox.phase == SandboxPhase::NotReady {
            self.handle(Event::SandboxLost).await;
        } else {
            self.publish();
        }
    }

    /// Rotates logs and measures volumes, beside everything else.
    fn keep_house(&mut self) {
        if self.housekeeping.as_ref().is_none_or(AbortHandle::is_finished) {
            let round = work::keep_house(Arc::clone(&self.node), Arc::clone(&self.plan));
            self.housekeeping = Some(self.jobs.spawn(round));
        }
    }

    async fn done(&mut self, outcome: Outcome) {
        for noted in outcome.noted {
            self.note(noted);
        }
        if self.history.ready_at == 0 {
            Timeline::extend(&mut self.history.spans, outcome.spans);
        }
        let Some(event) = outcome.event else { return };
        match &event {
            Event::Exited { name, attempt, .. } => {
                self.ending.remove(&(name.clone(), *attempt));
                self.cut_hooks(name);
            }
            Event::SandboxUp | Event::SandboxFailed { .. } => {
                let span = self.sandbox_span.take().and_then(|open| self.history.spans.get_mut(open));
                if let Some(span) = span {
                    span.ended = clock::unix();
                }
            }
            Event::Pulled { name } => {
                self.pulls.remove(name);
                self.pull_failures.remove(name);
            }
            Event::PullFailed { name, .. } => {
                self.pulls.remove(name);
                self.pull_failures.insert(name.clone());
            }
            _ => {}
        }
        let look = matches!(event, Event::Started { .. } | Event::SandboxUp);
        self.handle(event).await;
        if look {
            // It may have ended before anybody knew that it had begun.
            self.look().await;
        }
    }

    async fn handle(&mut self, event: Event) {
        self.asked_at = clock::boottime();
        let actions = self.sequence.handle(event, self.asked_at);
        self.settled(actions).await;
    }

    /// Because of the time alone.
    async fn tick(&mut self) {
        self.asked_at = clock::boottime();
        let actions = self.sequence.tick(self.asked_at);
        self.settled(actions).await;
    }

    /// After each step of the sequence: write it down, tell it, do it.
    async fn settled(&mut self, actions: Vec<Action>) {
        let status = self.sequence.status();
        // Probes that say what they said before are no news, and there are many of them.
        let only_probes = actions.iter().all(|action| matches!(action, Action::Probe { .. }));
        let just_over = self.sequence.is_over() && self.history.finished_at == 0;
        let changed = status != self.status || !only_probes || just_over;
        let before = std::mem::replace(&mut self.status, status);
        self.note_backoffs(&before);
        if changed {
            self.remember();
            self.persist(just_over || self.is_lasting(&before, &actions)).await;
            self.publish();
        }
        for action in actions {
            self.begin(action);
        }
        if self.sequence.is_over() {
            for ended in self.waiting_for_the_end.drain(..) {
                // One that went away does not wait any more.
                let _ = ended.send(());
            }
        }
    }

    fn begin(&mut self, action: Action) {
        let (node, plan) = (Arc::clone(&self.node), Arc::clone(&self.plan));
        match action {
            Action::RunSandbox { attempt } => {
                if self.history.ready_at == 0 {
                    self.sandbox_span =
                        Timeline::begin(&mut self.history.spans, Span::of_sandbox(clock::unix()));
                }
                self.jobs.spawn(work::run_sandbox(node, plan, attempt, self.sandbox_span));
            }
            Action::StopSandbox => {
                self.jobs.spawn(work::stop_sandbox(node, plan));
            }
            Action::Pull { name } => {
                let again = self.pull_failures.contains(&name);
                let telling = (self.telling.clone(), self.timeline.open(&name));
                self.jobs.spawn(pull::pull(node, plan, name, again, telling));
            }
            Action::Start { name, attempt } => {
                let parent = self.timeline.open(&name);
                self.jobs.spawn(work::start(node, plan, name, attempt, parent));
            }
            Action::Hook { name, attempt, hook } => {
                let running = self.jobs.spawn(work::hook(node, plan, name.clone(), attempt, hook));
                self.hooks.insert((name, hook), running);
            }
            Action::Probe { name, attempt, probe } => {
                self.jobs.spawn(work::probe(node, plan, name, attempt, probe));
            }
            Action::Stop { name, attempt, grace } => {
                self.cut_hooks(&name);
                self.note(self.killing(&name));
                self.jobs.spawn(work::stop(node, plan, name, attempt, grace));
            }
        }
    }

    /// What a hook still does is of no use any more.
    fn cut_hooks(&mut self, name: &str) {
        for hook in [Hook::PostStart, Hook::PreStop] {
            if let Some(running) = self.hooks.remove(&(name.to_owned(), hook)) {
                running.abort();
            }
        }
    }
}

/// In a probe's events.
pub(crate) fn probe_name(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Startup => "startup",
        ProbeKind::Liveness => "liveness",
        ProbeKind::Readiness => "readiness",
    }
}
