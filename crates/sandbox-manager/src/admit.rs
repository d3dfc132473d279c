//! Who may ask what when: a pure function, so that a test can feed it any sequence.

use crate::ContainerState;

/// What is being done to a container right now. In memory only: a restart of the daemon clears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InFlight {
    Idle,
    Create,
    Start,
    Stop,
    Remove,
}

/// What somebody wants of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Start,
    Stop,
    Remove,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// Begin the work.
    Run,
    /// The same work is in flight: wait for its result.
    Join,
    /// Nothing to do: it is so already.
    Done,
    /// Wait for what is in flight, then ask again. What is in flight is bounded in time.
    Later,
    /// Not in this state.
    Refuse(&'static str),
}

pub(crate) fn admit(ask: Ask, state: &ContainerState, busy: InFlight) -> Admit {
    use ContainerState as S;
    match (ask, busy) {
        (Ask::Start, InFlight::Start) | (Ask::Stop, InFlight::Stop) | (Ask::Remove, InFlight::Remove) => {
            Admit::Join
        }
        // To CRI a container being made does not exist, and one being removed is gone: its id is not known.
        (_, InFlight::Create) => Admit::Refuse("being created"),
        (Ask::Start, InFlight::Remove) => Admit::Refuse("being removed"),
        (Ask::Start, InFlight::Stop) => Admit::Refuse("being stopped"),
        (Ask::Stop, InFlight::Remove) | (Ask::Stop | Ask::Remove, InFlight::Start) => Admit::Later,
        (Ask::Remove, InFlight::Stop | InFlight::Idle) => Admit::Run,
        (Ask::Start, InFlight::Idle) => match state {
            S::Created { .. } => Admit::Run,
            S::Creating => Admit::Refuse("being created"),
            S::Running { .. } => Admit::Refuse("running"),
            S::Exited(_) => Admit::Refuse("exited"),
        },
        (Ask::Stop, InFlight::Idle) => match state {
            S::Created { .. } | S::Running { .. } => Admit::Run,
            S::Creating | S::Exited(_) => Admit::Done,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Exit;

    fn states() -> impl Strategy<Value = ContainerState> {
        prop_oneof![
            Just(ContainerState::Creating),
            Just(ContainerState::Created { pid: 7 }),
            Just(ContainerState::Running { pid: 7, started_at: 1 }),
            Just(ContainerState::Exited(Exit::unseen(1, ""))),
        ]
    }

    fn asks() -> impl Strategy<Value = Ask> {
        prop_oneof![Just(Ask::Start), Just(Ask::Stop), Just(Ask::Remove)]
    }

    fn in_flight() -> impl Strategy<Value = InFlight> {
        prop_oneof![
            Just(InFlight::Idle),
            Just(InFlight::Create),
            Just(InFlight::Start),
            Just(InFlight::Stop),
            Just(InFlight::Remove),
        ]
    }

    proptest! {
        #[test]
        fn only_a_created_container_starts(state in states(), busy in in_flight()) {
            let runs = admit(Ask::Start, &state, busy) == Admit::Run;
            prop_assert_eq!(runs, matches!(state, ContainerState::Created { .. }) && busy == InFlight::Idle);
        }

        #[test]
        fn stop_and_remove_are_never_refused_once_a_container_is_made(
            state in states(), busy in in_flight().prop_filter("made", |busy| *busy != InFlight::Create),
            ask in prop_oneof![Just(Ask::Stop), Just(Ask::Remove)],
        ) {
            prop_assert!(!matches!(admit(ask, &state, busy), Admit::Refuse(_)));
        }

        #[test]
        fn equal_work_is_never_done_twice_at_once(state in states(), ask in asks()) {
            let busy = match ask {
                Ask::Start => InFlight::Start,
                Ask::Stop => InFlight::Stop,
                Ask::Remove => InFlight::Remove,
            };
            prop_assert_eq!(admit(ask, &state, busy), Admit::Join);
        }
    }
}
