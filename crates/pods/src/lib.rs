//! Pods without kubelet: what a manifest says is made to be so.
//!
//! Owns the pods that were given to berth as manifests: their records, their volumes, the probes and hooks of their
//! containers, what happens to them. When something is to be done is said by the sandbox manager's sequence; what is
//! done to processes is done by the sandbox manager, as it is for kubelet.
//!
//! Never speaks gRPC, and never sees a pod of kubelet's.
