//! Which events a plugin wants.

use crate::Event;

/// Bit N - 1 for event N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Events(i32);

impl Events {
    const ALL: i32 = (1 << (Event::Last as i32 - 1)) - 1;

    /// What a plugin answered to Configure: nothing means everything. `None` for an event that there is not.
    pub(crate) fn subscribed(mask: i32) -> Option<Self> {
        match mask {
            0 => Some(Self(Self::ALL)),
            mask if mask & !Self::ALL == 0 => Some(Self(mask)),
            _ => None,
        }
    }

    pub(crate) fn has(self, event: Event) -> bool {
        self.0 & (1 << (event as i32 - 1)) != 0
    }

    pub(crate) fn names(self) -> Vec<&'static str> {
        (1..Event::Last as i32)
            .filter_map(|number| Event::try_from(number).ok())
            .filter(|event| self.has(*event))
            .map(method)
            .collect()
    }
}

/// The call that tells a plugin of an event; also its name for people.
pub(crate) fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_everything_and_what_there_is_not_is_refused() {
        let all = Events::subscribed(0).unwrap();
        assert_eq!(all.names().len(), 14);
        let some = Events::subscribed(0b1000).unwrap();
        assert!(some.has(Event::CreateContainer) && !some.has(Event::RunPodSandbox));
        assert_eq!(Events::subscribed(1 << 14), None);
        assert_eq!(Events::subscribed(-1), None);
    }
}
