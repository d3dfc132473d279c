//! The CRI messages, made of facts and of what the kernel says in this moment.

use std::sync::Arc;

use berth_cri::runtime::v1 as cri;

use crate::{
    CgroupFolders, Clock, ContainerFacts, Cpu, CpuRates, Interface, LayerSettings, LayerUsage, Memory,
    PodFacts, Psi, PsiLine, SystemClock, interfaces,
    metrics::{POD_AS_CONTAINER, Sink, container, network},
};

/// Answers for stats and metrics. One for the daemon; all it keeps is the last CPU sample and the last layer size of
/// each container.
///
/// Every call reads kernel files, so it belongs on a thread that may block; 250 containers are a few milliseconds of
/// stats.
#[derive(Debug)]
pub struct Stats {
    clock: Arc<dyn Clock>,
    rates: CpuRates,
    layers: LayerUsage,
}

impl Default for Stats {
    fn default() -> Self {
        Stats::new(LayerSettings::default(), Arc::new(SystemClock::new()))
    }
}

impl Stats {
    pub fn new(layers: LayerSettings, clock: Arc<dyn Clock>) -> Stats {
        Stats { rates: CpuRates::new(clock.clone()), layers: LayerUsage::new(layers, clock.clone()), clock }
    }

    /// A container has started: its layer is measured once while that is quick, so that its size is known when it is
    /// first asked for. Does not wait.
    pub fn started(&self, id: &str, layer: &crate::WritableLayer) {
        self.layers.usage(id, &layer.folder);
    }

    /// A container or pod is gone.
    pub fn forget(&self, id: &str) {
        self.rates.forget(id);
        self.layers.forget(id);
    }

    /// One container. Of one that has just ended, the attributes alone (kubelet follows them unchecked).
    pub fn container(&self, facts: &ContainerFacts) -> cri::ContainerStats {
        let cpu = facts.cgroup.cpu_time();
        let at = self.clock.unix_nanos();
        let memory = facts.cgroup.memory();
        let swap = memory.as_ref().and_then(|memory| facts.cgroup.swap(memory));
        let psi = facts.cgroup.io_pressure();
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: facts.id.clone(),
                metadata: Some(cri::ContainerMetadata { name: facts.name.clone(), attempt: facts.attempt }),
                labels: facts.labels.clone(),
                annotations: facts.annotations.clone(),
            }),
            cpu: cpu.map(|cpu| self.cpu_usage(&facts.id, &cpu, facts.started_at, at)),
            memory: memory.map(|memory| memory_usage(&memory, at)),
            writable_layer: self.layer_usage(facts),
            swap: swap.map(|swap| cri::SwapUsage {
                timestamp: at,
                swap_available_bytes: wrapped(swap.available()),
                swap_usage_bytes: wrapped(Some(swap.usage)),
            }),
            io: psi.map(|psi| io_usage(&psi, at)),
        }
    }

    /// Several, without those that have ended meanwhile.
    pub fn containers<'a>(
        &self,
        facts: impl IntoIterator<Item = &'a ContainerFacts>,
    ) -> Vec<cri::ContainerStats> {
        let stats = facts.into_iter().map(|facts| self.container(facts));
        stats.filter(|stats| stats.cpu.is_some() || stats.memory.is_some()).collect()
    }

    /// One pod with its running containers. `linux` is always set, and in it `network.default_interface` whenever
    /// `network` is.
    pub fn pod<'a>(
        &self,
        facts: &PodFacts,
        containers: impl IntoIterator<Item = &'a ContainerFacts>,
    ) -> cri::PodSandboxStats {
        let containers: Vec<&ContainerFacts> = containers.into_iter().collect();
        let counts = containers.iter().filter_map(|container| container.cgroup.process_count());
        let processes = counts.sum::<usize>();
        let stats = self.containers(containers);

        let own = |read: fn(&CgroupFolders) -> Option<Psi>| facts.cgroup.as_ref().and_then(read);
        let cpu = facts.cgroup.as_ref().and_then(CgroupFolders::cpu_time);
        let at = self.clock.unix_nanos();
        let cpu = cpu.map(|cpu| self.cpu_usage(&facts.id, &cpu, facts.created_at, at));
        let memory =
            facts.cgroup.as_ref().and_then(CgroupFolders::memory).map(|memory| memory_usage(&memory, at));
        let io = own(CgroupFolders::io_pressure).map(|psi| io_usage(&psi, at));
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: facts.id.clone(),
                metadata: Some(facts.metadata.clone()),
                labels: facts.labels.clone(),
                annotations: facts.annotations.clone(),
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: cpu.or_else(|| sum_of_cpu(&stats, at)),
                memory: memory.or_else(|| sum_of_memory(&stats, at)),
                network: facts.network.as_ref().and_then(|network| network_usage(network, at)),
                process: Some(cri::ProcessUsage {
                    timestamp: at,
                    process_count: wrapped(u64::try_from(processes).ok()),
                }),
                containers: stats,
                io,
            }),
            windows: None,
        }
    }

    /// The metrics of one pod and its running containers; see [`descriptors`](crate::descriptors). Dearer than stats:
    /// the open files of every process are counted.
    pub fn pod_metrics<'a>(
        &self,
        facts: &PodFacts,
        containers: impl IntoIterator<Item = &'a ContainerFacts>,
    ) -> cri::PodSandboxMetrics {
        let (name, namespace) = (facts.metadata.name.as_str(), facts.metadata.namespace.as_str());
        let mut sink = Sink::new([name, namespace, POD_AS_CONTAINER, &facts.id, ""]);
        let found =
            facts.network.as_ref().and_then(|network| interfaces(network.pid, &network.default_interface));
        if let Some(found) = found {
            network(&mut sink, &found);
        }
        cri::PodSandboxMetrics {
            pod_sandbox_id: facts.id.clone(),
            metrics: sink.into_metrics(),
            container_metrics: containers
                .into_iter()
                .filter_map(|facts| self.container_metrics(facts))
                .collect(),
        }
    }

    fn container_metrics(&self, facts: &ContainerFacts) -> Option<cri::ContainerMetrics> {
        let layer = facts.layer.as_ref().and_then(|layer| self.layers.usage(&facts.id, &layer.folder));
        let mut sink =
            Sink::new([&facts.pod.name, &facts.pod.namespace, &facts.name, &facts.id, &facts.image]);
        container(&mut sink, facts, layer.map(|measured| measured.usage), self.clock.unix_nanos())?;
        Some(cri::ContainerMetrics { container_id: facts.id.clone(), metrics: sink.into_metrics() })
    }

    fn cpu_usage(&self, id: &str, cpu: &Cpu, started_at: i64, at: i64) -> cri::CpuUsage {
        let started_at = Some(started_at).filter(|at| *at > 0);
        let rate = cpu.usage_nanos.and_then(|usage| self.rates.observe(id, usage, started_at));
        cri::CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: wrapped(cpu.usage_nanos),
            usage_nano_cores: wrapped(rate),
            psi: cpu.psi.as_ref().map(psi),
        }
    }

    fn layer_usage(&self, facts: &ContainerFacts) -> Option<cri::FilesystemUsage> {
        let layer = facts.layer.as_ref()?;
        let measured = self.layers.usage(&facts.id, &layer.folder)?;
        Some(cri::FilesystemUsage {
            timestamp: measured.at,
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: layer.mountpoint.to_string_lossy().into_owned(),
            }),
            used_bytes: wrapped(Some(measured.usage.bytes)),
            inodes_used: wrapped(Some(measured.usage.inodes)),
        })
    }
}

fn memory_usage(memory: &Memory, at: i64) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: at,
        working_set_bytes: wrapped(memory.working_set()),
        available_bytes: wrapped(memory.available()),
        usage_bytes: wrapped(memory.usage),
        rss_bytes: wrapped(memory.rss),
        page_faults: wrapped(memory.page_faults),
        major_page_faults: wrapped(memory.major_page_faults),
        psi: memory.psi.as_ref().map(psi),
    }
}

fn io_usage(pressure: &Psi, at: i64) -> cri::IoUsage {
    cri::IoUsage { timestamp: at, psi: Some(psi(pressure)) }
}

/// Both halves always: kubelet follows them unchecked.
fn psi(psi: &Psi) -> cri::PsiStats {
    let line = |line: &PsiLine| cri::PsiData {
        total: line.total_nanos,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    cri::PsiStats { full: Some(line(&psi.full)), some: Some(line(&psi.some)) }
}

fn network_usage(network: &crate::PodNetwork, at: i64) -> Option<cri::NetworkUsage> {
    let found = interfaces(network.pid, &network.default_interface)?;
    let usage = |interface: &Interface| cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: wrapped(Some(interface.rx_bytes)),
        rx_errors: wrapped(Some(interface.rx_errors)),
        tx_bytes: wrapped(Some(interface.tx_bytes)),
        tx_errors: wrapped(Some(interface.tx_errors)),
    };
    Some(cri::NetworkUsage {
        timestamp: at,
        default_interface: Some(usage(&found.default)),
        interfaces: found.others.iter().map(usage).collect(),
    })
}

/// A pod without a cgroup of its own. Totals shrink when a container goes, which is why the cgroup is asked first.
fn sum_of_cpu(stats: &[cri::ContainerStats], at: i64) -> Option<cri::CpuUsage> {
    let parts: Vec<&cri::CpuUsage> = stats.iter().filter_map(|stats| stats.cpu.as_ref()).collect();
    (!parts.is_empty()).then(|| cri::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: sum(parts.iter().map(|part| &part.usage_core_nano_seconds)),
        usage_nano_cores: sum(parts.iter().map(|part| &part.usage_nano_cores)),
        psi: None,
    })
}

fn sum_of_memory(stats: &[cri::ContainerStats], at: i64) -> Option<cri::MemoryUsage> {
    let parts: Vec<&cri::MemoryUsage> = stats.iter().filter_map(|stats| stats.memory.as_ref()).collect();
    (!parts.is_empty()).then(|| cri::MemoryUsage {
        timestamp: at,
        working_set_bytes: sum(parts.iter().map(|part| &part.working_set_bytes)),
        available_bytes: None,
        usage_bytes: sum(parts.iter().map(|part| &part.usage_bytes)),
        rss_bytes: sum(parts.iter().map(|part| &part.rss_bytes)),
        page_faults: sum(parts.iter().map(|part| &part.page_faults)),
        major_page_faults: sum(parts.iter().map(|part| &part.major_page_faults)),
        psi: None,
    })
}

/// `None` unless all are known: part of a sum would pass for the whole.
fn sum<'a>(mut parts: impl Iterator<Item = &'a Option<cri::UInt64Value>>) -> Option<cri::UInt64Value> {
    let total = parts.try_fold(0_u64, |total, part| Some(total.saturating_add(part.as_ref()?.value)));
    wrapped(total)
}

fn wrapped(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}
