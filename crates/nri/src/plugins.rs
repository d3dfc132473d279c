//! Who is connected, in the order in which they are asked; and who was, and what became of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use crate::{Event, plugin::Plugin};

/// Names that are kept of plugins that are gone: enough for any node, and no more for whoever makes names up.
const KEPT: usize = 64;

/// A connected plugin, for people.
#[derive(Clone, Debug)]
pub struct PluginInfo {
    /// NN-NAME.
    pub name: String,
    /// The process at the other end.
    pub pid: Option<i32>,
    /// Whether the daemon started it.
    pub installed: bool,
    /// What it wants to hear of.
    pub events: Vec<&'static str>,
}

/// A plugin that was connected, or should have been, and is not.
#[derive(Clone, Debug)]
pub struct LostPlugin {
    /// NN-NAME.
    pub name: String,
    /// Since when.
    pub since: SystemTime,
    /// Why.
    pub why: String,
}

#[derive(Debug, Default)]
pub(crate) struct Plugins {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connected: Vec<Arc<Plugin>>,
    lost: BTreeMap<String, LostPlugin>,
}

impl Plugins {
    /// From now on it is asked. Behind those of the same number that came before.
    pub(crate) fn add(&self, plugin: Arc<Plugin>) {
        let mut state = self.lock();
        state.lost.remove(&plugin.name);
        state.connected.push(plugin);
        state.connected.sort_by(|one, other| one.index.cmp(&other.index));
    }

    /// Its connection has ended: it is not asked any more. Why is known already when it failed before.
    pub(crate) fn remove(&self, plugin: &Plugin, why: &str) {
        let mut state = self.lock();
        if state.take_out(plugin) {
            state.lose(&plugin.name, why);
        }
    }

    /// It failed over a request: it is not asked any more, also when its connection has ended first.
    pub(crate) fn fail(&self, plugin: &Plugin, why: &str) {
        let mut state = self.lock();
        state.take_out(plugin);
        state.lose(&plugin.name, why);
    }

    /// It should be there and is not.
    pub(crate) fn miss(&self, name: &str, why: &str) {
        self.lock().lose(name, why);
    }

    /// Those that want to hear of an event, in their order.
    pub(crate) fn subscribed(&self, event: Event) -> Vec<Arc<Plugin>> {
        self.lock().connected.iter().filter(|plugin| plugin.events.has(event)).cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Plugin>> {
        self.lock().connected.clone()
    }

    /// Whether one of this name, without its number, is connected.
    pub(crate) fn has(&self, base: &str) -> bool {
        self.lock().connected.iter().any(|plugin| plugin.base == base)
    }

    pub(crate) fn info(&self) -> (Vec<PluginInfo>, Vec<LostPlugin>) {
        let state = self.lock();
        (state.connected.iter().map(|plugin| plugin.info()).collect(), state.lost.values().cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it was there.
    fn take_out(&mut self, plugin: &Plugin) -> bool {
        let before = self.connected.len();
        self.connected.retain(|known| !std::ptr::eq(Arc::as_ptr(known), plugin));
        self.connected.len() < before
    }

    /// Unless another one has come in its place.
    fn lose(&mut self, name: &str, why: &str) {
        if self.connected.iter().any(|plugin| plugin.name == name) {
            return;
        }
        let lost = LostPlugin { name: name.to_owned(), since: SystemTime::now(), why: why.to_owned() };
        self.lost.insert(name.to_owned(), lost);
        if self.lost.len() > KEPT {
            let oldest = self.lost.values().min_by_key(|lost| lost.since).map(|lost| lost.name.clone());
            self.lost.remove(&oldest.unwrap_or_default());
        }
    }
}
