//! Whole lives of pods on a virtual clock.

use std::collections::{BTreeMap, BinaryHeap};

use proptest::prelude::*;

use super::*;
use crate::ContainerKind;

fn secs(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

/// How a container behaves; each attempt takes the next of `ends`, and the last one for ever.
#[derive(Clone, Debug)]
struct Behaviour {
    pull: Time,
    /// Runs for so long and ends with a code; `None`: until it is told to end.
    ends: Vec<Option<(Time, i32)>>,
    /// From SIGTERM to its end; `None`: it takes no notice.
    term: Option<Time>,
    post_start: (Time, Option<&'static str>),
    pre_stop: Time,
    /// What each probe says, by the time since the start.
    startup: fn(Time) -> bool,
    liveness: fn(Time) -> bool,
    readiness: fn(Time) -> bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            pull: Time::ZERO,
            ends: vec![None],
            term: Some(secs(1)),
            post_start: (Time::ZERO, None),
            pre_stop: Time::ZERO,
            startup: |_| true,
            liveness: |_| true,
            readiness: |_| true,
        }
    }
}

fn runs(seconds: u64, code: i32) -> Behaviour {
    Behaviour { ends: vec![Some((secs(seconds), code))], ..Behaviour::default() }
}

/// A pod and a world for it to live in.
struct World {
    sequence: Sequence,
    now: Time,
    events: BinaryHeap<std::cmp::Reverse<(Time, u64, Pending)>>,
    number: u64,
    behaviours: BTreeMap<String, Behaviour>,
    /// Started attempts that have not ended.
    alive: BTreeMap<String, (u32, Time)>,
    sandbox: bool,
    /// "12 start app", in seconds.
    log: Vec<String>,
}

#[derive(Clone, Debug)]
struct Pending(Event);

// Only the time and the number order events.
impl PartialEq for Pending {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Pending {}
impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pending {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl World {
    fn new(plan: Plan, behaviours: impl IntoIterator<Item = (&'static str, Behaviour)>) -> Self {
        let behaviours =
            behaviours.into_iter().map(|(name, behaviour)| (name.to_owned(), behaviour)).collect();
        let mut world = Self {
            sequence: Sequence::new(plan, Time::ZERO),
            now: Time::ZERO,
            events: BinaryHeap::new(),
            number: 0,
            behaviours,
            alive: BTreeMap::new(),
            sandbox: false,
            log: Vec::new(),
        };
        let actions = world.sequence.tick(Time::ZERO);
        world.act(actions);
        world
    }

    fn behaviour(&self, name: &str) -> Behaviour {
        self.behaviours.get(name).cloned().unwrap_or_default()
    }

    fn push(&mut self, after: Time, event: Event) {
        self.number += 1;
        self.events.push(std::cmp::Reverse((self.now + after, self.number, Pending(event))));
    }

    fn say(&mut self, what: String) {
        self.log.push(format!("{} {what}", self.now.as_secs()));
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::RunSandbox { .. } => {
                    self.sandbox = true;
                    self.push(Time::ZERO, Event::SandboxUp);
                }
                Action::StopSandbox => {
                    self.sandbox = false;
                    assert!(self.alive.is_empty(), "the sandbox is stopped under {:?}", self.alive);
                    self.say("stop sandbox".to_owned());
                    self.push(Time::ZERO, Event::SandboxStopped);
                }
                Action::Pull { name } => {
                    let pull = self.behaviour(&name).pull;
                    self.push(pull, Event::Pulled { name });
                }
                Action::Start { name, attempt } => {
                    assert!(
                        self.alive.insert(name.clone(), (attempt, self.now)).is_none(),
                        "{name} runs twice"
                    );
                    self.say(format!("start {name}"));
                    self.push(Time::ZERO, Event::Started { name: name.clone(), attempt });
                    let ends = self.behaviour(&name).ends;
                    let index = usize::try_from(attempt).unwrap().min(ends.len() - 1);
                    if let Some((after, code)) = ends[index] {
                        self.exit(after, name, attempt, code);
                    }
                }
                Action::Hook { name, attempt, hook } => {
                    let behaviour = self.behaviour(&name);
                    self.say(format!("{hook:?} {name}"));
                    let (after, failure) = match hook {
                        Hook::PostStart => behaviour.post_start,
                        Hook::PreStop => (behaviour.pre_stop, None),
                    };
                    let failure = failure.map(str::to_owned);
                    self.push(after, Event::HookEnded { name, attempt, hook, failure });
                }
                Action::Probe { name, attempt, probe } => {
                    let behaviour = self.behaviour(&name);
                    let age = self.now - self.alive[&name].1;
                    let success = match probe {
                        ProbeKind::Startup => (behaviour.startup)(age),
                        ProbeKind::Liveness => (behaviour.liveness)(age),
                        ProbeKind::Readiness => (behaviour.readiness)(age),
                    };
                    let answer = if success { ProbeAnswer::Success } else { ProbeAnswer::Failure };
                    self.push(Time::ZERO, Event::Probed { name, attempt, probe, answer });
                }
                Action::Stop { name, attempt, grace } => {
                    self.say(format!("stop {name} within {}", grace.as_secs()));
                    match self.behaviour(&name).term.filter(|term| *term < grace) {
                        Some(term) => self.exit(term, name, attempt, 0),
                        None => self.exit(grace, name, attempt, 137),
                    }
                }
            }
        }
    }

    fn exit(&mut self, after: Time, name: String, attempt: u32, code: i32) {
        let ended = Ended { code, reason: String::new(), message: String::new() };
        self.push(after, Event::Exited { name, attempt, ended });
    }

    /// The next thing that happens; false when nothing will.
    fn step(&mut self, until: Time) -> bool {
        let event_at = self.events.peek().map(|event| event.0.0);
        let next = [event_at, self.sequence.wake_at(self.now)].into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= until) else {
            self.now = until;
            return false;
        };
        self.now = next;
        if event_at != Some(next) {
            let actions = self.sequence.tick(next);
            self.act(actions);
            return true;
        }
        let Some(std::cmp::Reverse((_, _, Pending(event)))) = self.events.pop() else { return false };
        if let Event::Exited { name, attempt, ended } = &event {
            // The first of several reasons to end is the one that counts.
            if self.alive.get(name).is_none_or(|(alive, _)| alive != attempt) {
                let actions = self.sequence.tick(next);
                self.act(actions);
                return true;
            }
            self.alive.remove(name);
            self.say(format!("end {name} {}", ended.code));
        }
        let actions = self.sequence.handle(event, next);
        self.act(actions);
        true
    }

    fn run_until(&mut self, seconds: u64) {
        while self.step(secs(seconds)) {}
    }

    fn stop(&mut self, grace: u64) {
        let actions = self.sequence.handle(Event::StopAsked { grace: secs(grace) }, self.now);
        self.act(actions);
    }

    fn phase(&self) -> Phase {
        self.sequence.status().phase
    }

    fn is(&self, condition: Condition) -> bool {
        self.sequence.status().conditions.contains(&condition)
    }

    fn container(&self, name: &str) -> ContainerStatus {
        self.sequence.status().containers.into_iter().find(|found| found.name == name).unwrap()
    }

    /// The daemon is killed and started again: answers on their way are lost, and what ended meanwhile is known.
    fn restart_daemon(&mut self) {
        let kept = std::mem::take(&mut self.events).into_vec();
        self.events = kept.into_iter().filter(|event| matches!(event.0.2.0, Event::Exited { .. })).collect();
        let text = serde_json::to_string(&self.sequence).unwrap();
        self.sequence = serde_json::from_str(&text).unwrap();
        let alive = self.alive.clone();
        let found = |name: &str, attempt| match alive.get(name) {
            Some((running, _)) if *running == attempt => Found::Running,
            _ => Found::Nothing,
        };
        let sandbox = self.sandbox;
        let actions = self.sequence.resume(sandbox, found, self.now);
        self.act(actions);
    }

    /// The machine is booted anew, which takes two seconds of the new clock. `age`: the pod's.
    fn reboot(&mut self, age: Time) {
        self.events.clear();
        self.alive.clear();
        (self.sandbox, self.now) = (false, secs(2));
        self.sequence.rebooted(age, self.now);
        let actions = self.sequence.resume(false, |_, _| Found::Nothing, self.now);
        self.act(actions);
    }

    /// The seconds of the log's lines that say this.
    fn times(&self, what: &str) -> Vec<u64> {
        let lines = self.log.iter().filter_map(|line| line.split_once(' '));
        lines.filter(|(_, said)| *said == what).map(|(at, _)| at.parse().unwrap()).collect()
    }
}

fn container(name: &str, kind: ContainerKind) -> PlannedContainer {
    PlannedContainer {
        name: name.to_owned(),
        kind,
        post_start: false,
        pre_stop: false,
        probes: PlannedProbes::default(),
    }
}

fn probe(period: u64, failures: u32) -> Option<PlannedProbe> {
    Some(PlannedProbe {
        initial_delay: Time::ZERO,
        period: secs(period),
        success_threshold: 1,
        failure_threshold: failures,
        grace: None,
    })
}

/// `i:` init, `s:` sidecar, else standard.
fn plan(names: &[&str], restart_policy: RestartPolicy) -> Plan {
    let mut plan = Plan {
        startup: Vec::new(),
        standard: Vec::new(),
        restart_policy,
        grace: secs(30),
        active_deadline: None,
    };
    for name in names {
        match name.split_once(':') {
            Some(("i", name)) => plan.startup.push(container(name, ContainerKind::Init)),
            Some(("s", name)) => plan.startup.push(container(name, ContainerKind::Sidecar)),
            _ => plan.standard.push(container(name, ContainerKind::Standard)),
        }
    }
    plan
}

#[test]
fn init_containers_run_one_after_another_and_the_standard_ones_together() {
    let plan = plan(&["i:one", "i:two", "a", "b"], RestartPolicy::Always);
    let slow = Behaviour { pull: secs(50), ..Behaviour::default() };
    let mut world = World::new(plan, [("one", runs(3, 0)), ("two", runs(4, 0)), ("a", slow)]);
    world.run_until(6);
    assert_eq!((world.phase(), world.is(Condition::Initialized)), (Phase::Pending, false));
    assert_eq!(
        world.container("a").state,
        ContainerState::Waiting { reason: "PodInitializing".into(), message: String::new() }
    );
    world.run_until(100);
    assert_eq!(
        world.log,
        ["0 start one", "3 end one 0", "3 start two", "7 end two 0", "7 start b", "57 start a"]
    );
    assert!(world.phase() == Phase::Running && world.is(Condition::Ready));
}

#[test]
fn a_failing_init_container_is_tried_again_with_longer_and_longer_pauses() {
    for policy in [RestartPolicy::Always, RestartPolicy::OnFailure] {
        let mut init = runs(1, 1);
        init.ends = vec![Some((secs(1), 1)), Some((secs(1), 1)), Some((secs(1), 1)), Some((secs(1), 0))];
        let mut world = World::new(plan(&["i:setup", "app"], policy), [("setup", init)]);
        world.run_until(13);
        let ContainerState::Waiting { reason, .. } = world.container("setup").state else { panic!() };
        assert_eq!(reason, "CrashLoopBackOff");
        world.run_until(1000);
        assert_eq!(world.times("start setup"), [0, 1, 12, 33]);
        assert_eq!(world.times("start app"), [34]);
        assert_eq!(world.container("setup").restarts, 3);
    }
}

#[test]
fn a_failing_init_container_is_the_end_of_a_pod_that_never_restarts() {
    let mut world =
        World::new(plan(&["s:side", "i:setup", "app"], RestartPolicy::Never), [("setup", runs(1, 3))]);
    world.run_until(1000);
    assert_eq!(
        world.log,
        [
            "0 start side",
            "0 start setup",
            "1 end setup 3",
            "1 stop side within 30",
            "2 end side 0",
            "2 stop sandbox"
        ]
    );
    let status = world.sequence.status();
    assert_eq!((status.phase, status.reason), (Phase::Failed, "InitContainerFailed"));
    assert!(status.message.contains("setup") && world.sequence.is_over());
}

#[test]
fn a_sidecar_that_is_not_started_holds_the_others_back_also_across_its_crash() {
    let mut plan = plan(&["s:proxy", "app"], RestartPolicy::Always);
    plan.startup[0].probes.startup = probe(1, 100);
    let proxy = Behaviour {
        ends: vec![Some((secs(3), 1)), None],
        startup: |age| age >= secs(5),
        ..Behaviour::default()
    };
    let mut world = World::new(plan, [("proxy", proxy)]);
    world.run_until(100);
    assert_eq!(world.log, ["0 start proxy", "3 end proxy 1", "3 start proxy", "8 start app"]);
}

#[test]
fn a_sidecar_is_restarted_while_init_containers_run_and_holds_what_comes_then() {
    let plan = plan(&["s:proxy", "i:setup", "app"], RestartPolicy::Always);
    let proxy =
        Behaviour { ends: vec![Some((secs(2), 0)), Some((secs(1), 0)), None], ..Behaviour::default() };
    let mut world = World::new(plan, [("proxy", proxy), ("setup", runs(5, 0))]);
    world.run_until(100);
    assert_eq!(world.times("start proxy"), [0, 2, 13], "at once, then after a back-off");
    assert_eq!(world.times("start app"), [13], "its init container was done at 5, but the sidecar was away");
}

#[test]
fn a_sidecar_stays_while_the_app_crash_loops() {
    let mut world = World::new(plan(&["s:proxy", "app"], RestartPolicy::Always), [("app", runs(1, 1))]);
    world.run_until(3600);
    assert_eq!(world.times("start proxy"), [0]);
    assert_eq!(world.times("start app")[..5], [0, 1, 12, 33, 74]);
    let starts = world.times("start app");
    assert_eq!(starts[starts.len() - 1] - starts[starts.len() - 2], 301);
    assert_eq!(world.phase(), Phase::Running);
}

#[test]
fn ten_good_minutes_are_a_new_beginning() {
    let mut app = runs(1, 1);
    app.ends = vec![Some((secs(1), 1)), Some((secs(1), 1)), Some((secs(600), 1)), Some((secs(1), 1)), None];
    let mut world = World::new(plan(&["app"], RestartPolicy::Always), [("app", app)]);
    world.run_until(3600);
    assert_eq!(world.times("start app"), [0, 1, 12, 612, 623]);
}

#[test]
fn a_job_is_over_with_its_work_and_its_sidecars_end_after_it_in_reverse() {
    let plan = plan(&["s:first", "s:second", "job"], RestartPolicy::Never);
    let mut world = World::new(plan, [("job", runs(5, 0))]);
    world.run_until(1000);
    assert_eq!(
        world.log[3..],
        [
            "5 end job 0",
            "5 stop second within 30",
            "6 end second 0",
            "6 stop first within 29",
            "7 end first 0",
            "7 stop sandbox"
        ]
    );
    assert_eq!(world.phase(), Phase::Succeeded);
}

#[test]
fn on_failure_means_until_it_succeeds() {
    let mut job = runs(1, 1);
    job.ends = vec![Some((secs(1), 1)), Some((secs(1), 0))];
    let mut world = World::new(plan(&["job"], RestartPolicy::OnFailure), [("job", job)]);
    world.run_until(1000);
    assert_eq!((world.times("start job"), world.phase()), (vec![0, 1], Phase::Succeeded));
    let mut world = World::new(plan(&["job"], RestartPolicy::Never), [("job", runs(1, 1))]);
    world.run_until(1000);
    assert_eq!((world.times("start job"), world.phase()), (vec![0], Phase::Failed));
}

#[test]
fn the_end_comes_to_all_standard_containers_at_once_and_then_to_sidecars() {
    let mut plan = plan(&["s:one", "s:two", "a", "b"], RestartPolicy::Always);
    plan.standard[0].pre_stop = true;
    let a = Behaviour { pre_stop: secs(4), term: Some(secs(2)), ..Behaviour::default() };
    let mut world = World::new(plan, [("a", a)]);
    world.run_until(10);
    world.log.clear();
    world.stop(30);
    world.run_until(1000);
    assert_eq!(
        world.log,
        [
            "10 PreStop a",
            "10 stop b within 30",
            "11 end b 0",
            "14 stop a within 26",
            "16 end a 0",
            "16 stop two within 24",
            "17 end two 0",
            "17 stop one within 23",
            "18 end one 0",
            "18 stop sandbox"
        ]
    );
    assert!(world.sequence.is_over());
}

#[test]
fn a_hanging_pre_stop_is_cut_at_the_grace_period_and_everything_killed_with_it() {
    let mut plan = plan(&["s:side", "app"], RestartPolicy::Always);
    plan.standard[0].pre_stop = true;
    let app = Behaviour { pre_stop: secs(10_000), ..Behaviour::default() };
    let mut world = World::new(plan, [("app", app)]);
    world.run_until(1);
    world.log.clear();
    world.stop(5);
    world.run_until(9000);
    assert_eq!(world.log[0], "1 PreStop app");
    assert_eq!(world.times("stop app within 0"), [6]);
    assert_eq!(world.times("stop side within 0"), [6]);
    assert_eq!(world.times("stop sandbox"), [6]);
}

#[test]
fn what_ignores_sigterm_is_killed_when_the_pods_time_is_over() {
    let deaf = Behaviour { term: None, ..Behaviour::default() };
    let mut world = World::new(plan(&["s:side", "app"], RestartPolicy::Always), [("app", deaf)]);
    world.run_until(1);
    world.stop(5);
    world.run_until(100);
    assert_eq!((world.times("end app 137"), world.times("stop sandbox")), (vec![6], vec![6]));
    assert_eq!(world.phase(), Phase::Failed);
}

#[test]
fn a_second_stop_with_less_grace_shortens_the_first() {
    let deaf = Behaviour { term: None, ..Behaviour::default() };
    let mut world = World::new(plan(&["app"], RestartPolicy::Always), [("app", deaf)]);
    world.run_until(1);
    world.stop(300);
    world.run_until(10);
    world.stop(2);
    world.run_until(1000);
    assert_eq!(world.times("end app 137"), [12]);
    world.stop(0);
    world.run_until(1001);
    assert!(world.sequence.is_over());
}

#[test]
fn a_hanging_post_start_keeps_a_container_from_running() {
    let mut plan = plan(&["s:side", "app"], RestartPolicy::Always);
    plan.startup[0].post_start = true;
    plan.startup[0].probes.liveness = probe(1, 1);
    let side = Behaviour { post_start: (secs(60), None), ..Behaviour::default() };
    let mut world = World::new(plan, [("side", side)]);
    world.run_until(59);
    assert_eq!((world.phase(), world.container("side").started), (Phase::Pending, false));
    world.run_until(61);
    assert_eq!(world.times("start app"), [60]);
}

#[test]
fn no_ones_slow_post_start_delays_another() {
    let mut plan = plan(&["a", "b"], RestartPolicy::Always);
    plan.standard[0].post_start = true;
    let a = Behaviour { post_start: (secs(60), None), ..Behaviour::default() };
    let mut world = World::new(plan, [("a", a)]);
    world.run_until(1);
    assert_eq!((world.times("start a"), world.times("start b")), (vec![0], vec![0]));
    assert!(world.container("b").ready && !world.container("a").ready && !world.is(Condition::Ready));
}

#[test]
fn a_failed_post_start_ends_the_attempt() {
    let mut plan = plan(&["app"], RestartPolicy::Always);
    plan.standard[0].post_start = true;
    let app = Behaviour { post_start: (secs(1), Some("exit code 1")), ..Behaviour::default() };
    let mut world = World::new(plan, [("app", app)]);
    world.run_until(5);
    assert_eq!(world.log[..4], ["0 start app", "0 PostStart app", "1 stop app within 30", "2 end app 0"]);
    assert_eq!(world.container("app").restarts, 1);
}

#[test]
fn liveness_restarts_readiness_only_flips_ready_and_startup_gates_both() {
    let mut plan = plan(&["app"], RestartPolicy::Always);
    plan.standard[0].probes =
        PlannedProbes { startup: probe(1, 100), liveness: probe(2, 3), readiness: probe(1, 1) };
    let app = Behaviour {
        startup: |age| age >= secs(10),
        // Would have failed before 10 s and does again from 20 s on.
        liveness: |age| (secs(10)..secs(20)).contains(&age),
        readiness: |age| !(secs(13)..secs(15)).contains(&age),
        ..Behaviour::default()
    };
    let mut world = World::new(plan, [("app", app)]);
    world.run_until(9);
    assert!(!world.container("app").started);
    let mut ready = Vec::new();
    for second in 10..20 {
        world.run_until(second);
        ready.push(world.is(Condition::Ready));
    }
    assert_eq!(ready, [true, true, true, false, false, true, true, true, true, true]);
    assert_eq!(world.container("app").restarts, 0);
    world.run_until(30);
    assert_eq!(world.times("stop app within 30"), [24], "the third failure in a row");
    assert_eq!(world.times("start app"), [0, 25]);
}

#[test]
fn a_probe_may_have_a_grace_of_its_own() {
    let mut plan = plan(&["app"], RestartPolicy::Always);
    plan.standard[0].probes.liveness =
        probe(1, 1).map(|probe| PlannedProbe { grace: Some(secs(2)), ..probe });
    let deaf = Behaviour { liveness: |age| age < secs(5), term: None, ..Behaviour::default() };
    let mut world = World::new(plan, [("app", deaf)]);
    world.run_until(8);
    assert_eq!((world.times("stop app within 2"), world.times("end app 137")), (vec![5], vec![7]));
}

#[test]
fn a_pod_that_is_too_old_has_failed() {
    let mut plan = plan(&["app"], RestartPolicy::Always);
    plan.active_deadline = Some(secs(20));
    let mut world = World::new(plan, []);
    world.run_until(100);
    assert_eq!(world.times("stop app within 30"), [20]);
    let status = world.sequence.status();
    assert_eq!((status.phase, status.reason), (Phase::Failed, "DeadlineExceeded"));
}

#[test]
fn an_image_that_cannot_be_had_is_asked_for_again_less_and_less_often() {
    let mut sequence = Sequence::new(plan(&["app"], RestartPolicy::Never), Time::ZERO);
    let mut asked = Vec::new();
    let mut now = Time::ZERO;
    let mut actions = sequence.tick(now);
    while now < secs(400) {
        for action in std::mem::take(&mut actions) {
            let event = match action {
                Action::RunSandbox { .. } => Event::SandboxUp,
                Action::Pull { name } => {
                    asked.push(now.as_secs());
                    let (reason, error) = ("ErrImagePull".to_owned(), "no such host".to_owned());
                    Event::PullFailed { name, reason, error }
                }
                other => panic!("{other:?}"),
            };
            actions.extend(sequence.handle(event, now));
        }
        if actions.is_empty() {
            now = sequence.wake_at(now).unwrap();
            actions = sequence.tick(now);
        }
    }
    assert_eq!(asked, [0, 10, 30, 70, 150, 310]);
    assert_eq!(sequence.status().phase, Phase::Pending);
}

#[test]
fn an_ephemeral_container_is_added_at_any_time_and_never_restarted() {
    let mut world = World::new(
        plan(&["i:setup", "app"], RestartPolicy::Always),
        [("setup", runs(100, 0)), ("debug", runs(2, 1))],
    );
    world.run_until(5);
    assert!(world.sequence.add_ephemeral(container("debug", ContainerKind::Ephemeral)));
    assert!(!world.sequence.add_ephemeral(container("app", ContainerKind::Ephemeral)), "the name is taken");
    let actions = world.sequence.tick(world.now);
    world.act(actions);
    world.run_until(200);
    assert_eq!((world.times("start debug"), world.times("end debug 1")), (vec![5], vec![7]));
    assert!(world.is(Condition::Ready), "it counts for nothing");
}

#[test]
fn a_lost_sandbox_is_made_anew_with_its_init_containers() {
    let plan_always = plan(&["i:setup", "app"], RestartPolicy::Always);
    let mut world = World::new(plan_always, [("setup", runs(1, 0))]);
    world.run_until(10);
    world.alive.clear();
    let actions = world.sequence.handle(Event::SandboxLost, world.now);
    world.act(actions);
    world.run_until(20);
    assert_eq!((world.times("start setup"), world.times("start app")), (vec![0, 10], vec![1, 11]));
    assert_eq!(world.container("app").restarts, 1);

    let mut world = World::new(plan(&["app"], RestartPolicy::Never), []);
    world.run_until(10);
    world.alive.clear();
    let actions = world.sequence.handle(Event::SandboxLost, world.now);
    world.act(actions);
    world.run_until(11);
    assert_eq!((world.phase(), world.sequence.is_over()), (Phase::Failed, true));
    assert_eq!(world.times("stop sandbox"), [10], "its network and ports are free again");
}

#[test]
fn a_reboot_ends_what_ran_and_does_nothing_again_that_was_done() {
    let mut once = plan(&["i:setup", "once", "app"], RestartPolicy::OnFailure);
    once.active_deadline = Some(secs(120));
    let mut world = World::new(once, [("setup", runs(1, 0)), ("once", runs(5, 0))]);
    world.run_until(100);
    world.reboot(secs(100));
    world.run_until(15);
    // What init containers prepared may have been in memory.
    assert_eq!((world.times("start setup"), world.times("start app")), (vec![0, 2], vec![1, 3]));
    assert_eq!(world.times("start once"), [1]);
    assert_eq!((world.container("app").restarts, world.container("once").restarts), (1, 0));
    world.run_until(30);
    assert_eq!(world.times("stop app within 30"), [22], "it goes on growing old");

    let mut world = World::new(plan(&["job"], RestartPolicy::Never), []);
    world.run_until(10);
    world.reboot(secs(10));
    world.run_until(11);
    assert_eq!((world.phase(), world.sequence.is_over()), (Phase::Failed, true));

    let mut world =
        World::new(plan(&["i:setup", "s:proxy", "app"], RestartPolicy::Always), [("setup", runs(3, 0))]);
    world.run_until(10);
    world.reboot(secs(10));
    world.run_until(20);
    assert_eq!((world.times("start setup"), world.times("start proxy")), (vec![0, 2], vec![3, 5]));

    let pulls = Behaviour { pull: secs(50), ..Behaviour::default() };
    let mut world = World::new(plan(&["job"], RestartPolicy::Never), [("job", pulls)]);
    world.run_until(10);
    world.reboot(secs(10));
    world.run_until(60);
    assert_eq!((world.times("start job"), world.phase()), (vec![52], Phase::Running), "none of it had run");
}

#[test]
fn a_pod_goes_on_where_it_was_when_the_daemon_comes_back() {
    let mut plan = plan(&["i:setup", "app"], RestartPolicy::Always);
    plan.standard[0].post_start = true;
    let app = Behaviour { post_start: (secs(20), None), pull: secs(5), ..runs(60, 1) };
    let mut world = World::new(plan, [("setup", runs(4, 0)), ("app", app)]);
    for second in 1..=100 {
        world.run_until(second);
        if second % 7 == 0 {
            world.restart_daemon();
        }
    }
    assert_eq!(world.times("start setup"), [0]);
    // A pull that was cut off is begun again; a hook is as well.
    assert_eq!(world.times("start app")[0], 12);
    assert!(world.times("PostStart app").len() > 1);
    assert_eq!(world.container("app").restarts, 1);
}

#[test]
fn a_stop_before_anything_began_leaves_nothing_to_do() {
    let mut sequence = Sequence::new(plan(&["app"], RestartPolicy::Always), Time::ZERO);
    assert_eq!(sequence.handle(Event::StopAsked { grace: secs(30) }, Time::ZERO), []);
    assert!(sequence.is_over() && sequence.status().phase == Phase::Failed);
}

/// Random pods: what may never happen, whatever the containers do.
mod any_pod {
    use super::*;

    fn behaviour() -> impl Strategy<Value = Behaviour> {
        let end = prop_oneof![
            Just(None),
            (0_u64..20, prop_oneof![Just(0), Just(1)]).prop_map(|(after, code)| Some((secs(after), code))),
        ];
        let term = prop_oneof![Just(None), (0_u64..10).prop_map(|term| Some(secs(term)))];
        let slow = |most: u64| (0..most).prop_map(secs);
        (slow(5), prop::collection::vec(end, 1..4), term, slow(8), slow(40)).prop_map(
            |(pull, ends, term, post_start, pre_stop)| Behaviour {
                pull,
                ends,
                term,
                post_start: (post_start, None),
                pre_stop,
                ..Behaviour::default()
            },
        )
    }

    fn pod() -> impl Strategy<Value = (Plan, Vec<Behaviour>, u64)> {
        let policy = prop_oneof![
            Just(RestartPolicy::Always),
            Just(RestartPolicy::OnFailure),
            Just(RestartPolicy::Never)
        ];
        let hooks = || (any::<bool>(), any::<bool>());
        let startup = prop::collection::vec((any::<bool>(), hooks()), 0..4);
        let standard = prop::collection::vec(hooks(), 1..4);
        (policy, startup, standard, prop::collection::vec(behaviour(), 8), 1_u64..120).prop_map(
            |(policy, startup, standard, behaviours, stop_at)| {
                let mut built = plan(&[], policy);
                for (index, (sidecar, (post_start, pre_stop))) in startup.into_iter().enumerate() {
                    let kind = if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init };
                    // Init containers have no hooks.
                    let hooks = (post_start && sidecar, pre_stop && sidecar);
                    let name = format!("startup-{index}");
                    built.startup.push(PlannedContainer {
                        post_start: hooks.0,
                        pre_stop: hooks.1,
                        ..container(&name, kind)
                    });
                }
                for (index, (post_start, pre_stop)) in standard.into_iter().enumerate() {
                    let name = format!("standard-{index}");
                    let planned = container(&name, ContainerKind::Standard);
                    built.standard.push(PlannedContainer { post_start, pre_stop, ..planned });
                }
                (built, behaviours, stop_at)
            },
        )
    }

    proptest! {
        #[test]
        fn keeps_the_rules((plan, behaviours, stop_at) in pod(), restarts in prop::collection::vec(0_usize..60, 0..4)) {
            let names: Vec<String> =
                plan.startup.iter().chain(&plan.standard).map(|planned| planned.name.clone()).collect();
            let startup = plan.startup.len();
            let inits: Vec<&PlannedContainer> =
                plan.startup.iter().filter(|planned| planned.kind == ContainerKind::Init).collect();
            let inits: Vec<String> = inits.into_iter().map(|planned| planned.name.clone()).collect();
            let mut world = World::new(plan.clone(), []);
            world.behaviours = names.iter().cloned().zip(behaviours).collect();
            let mut steps = 0;
            loop {
                let status = world.sequence.status();
                let running: Vec<&String> = world.alive.keys().collect();
                // One init container at a time.
                prop_assert!(running.iter().filter(|name| inits.contains(name)).count() <= 1, "{:?}", world.log);
                // No standard container before every init container has succeeded.
                let began = status.containers[startup..].iter()
                    .any(|c| !matches!(c.state, ContainerState::Waiting { .. }));
                let initialized = status.conditions.contains(&Condition::Initialized);
                prop_assert!(!began || initialized, "{:?}", world.log);
                if !world.step(secs(stop_at)) {
                    break;
                }
                // A pod that restarts in no time at all goes on for ever in none.
                steps += 1;
                if restarts.contains(&steps) {
                    world.restart_daemon();
                }
                prop_assert!(steps < 10_000, "{:?}", &world.log[..50]);
            }
            world.stop(30);
            world.run_until(stop_at + 31);
            // All is over within the grace period, and nothing is left.
            prop_assert!(world.sequence.is_over(), "{:?}\n{:?}", world.log, world.sequence);
            prop_assert!(world.alive.is_empty());
            prop_assert!(matches!(world.phase(), Phase::Succeeded | Phase::Failed));
            // Nothing starts after the end has begun.
            let last_start = world.log.iter().rposition(|line| line.contains(" start "));
            let sandbox = world.log.iter().position(|line| line.ends_with("stop sandbox"));
            prop_assert!(last_start < sandbox || sandbox.is_none(), "{:?}", world.log);
        }

        /// Whenever the machine goes down.
        #[test]
        fn does_nothing_again_that_was_done((plan, behaviours, stop_at) in pod(), reboots in prop::collection::vec(0_usize..60, 1..4)) {
            let mut world = World::new(plan.clone(), []);
            let all = || plan.startup.iter().chain(&plan.standard);
            world.behaviours = all().map(|planned| planned.name.clone()).zip(behaviours).collect();
            for step in 0..2_000 {
                if reboots.contains(&step) {
                    world.reboot(world.now);
                }
                if !world.step(secs(stop_at)) {
                    break;
                }
            }
            for planned in all().filter(|planned| planned.kind != ContainerKind::Sidecar) {
                let lines = world.log.iter().filter_map(|line| line.split_once(' ')).map(|(_, what)| what);
                let started = format!("start {}", planned.name);
                let starts = lines.clone().filter(|what| **what == started).count();
                let done = lines.clone().skip_while(|what| *what != format!("end {} 0", planned.name));
                let again = done.clone().any(|what| what == started);
                match plan.restart_policy {
                    RestartPolicy::Never => prop_assert!(starts <= 1, "{:?}", world.log),
                    RestartPolicy::OnFailure if planned.kind == ContainerKind::Standard => {
                        prop_assert!(!again, "{:?}", world.log);
                    }
                    RestartPolicy::OnFailure | RestartPolicy::Always => {}
                }
            }
        }
    }
}
