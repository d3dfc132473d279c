//! Who a pod's processes run as, and what they may do.

use crate::fields::Fields;
use crate::names;

/// What holds for all of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSecurity {
    /// What containers have that say nothing themselves.
    pub defaults: Security,
    pub supplemental_groups: Vec<i64>,
    pub supplemental_groups_policy: SupplementalGroups,
    /// Volumes belong to this group, and every process is in it.
    pub fs_group: Option<i64>,
    pub fs_group_change: FsGroupChange,
    /// Name and value.
    pub sysctls: Vec<(String, String)>,
}

/// What holds for a container; what it does not say is the pod's to say, then the image's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    pub privileged: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub read_only_root_filesystem: bool,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    pub se_linux: Option<SeLinux>,
    pub seccomp: Option<Seccomp>,
    pub app_armor: Option<AppArmor>,
    /// /proc without masks.
    pub unmasked_proc: bool,
}

/// Which groups a process is in besides those that are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SupplementalGroups {
    /// Those of its user in the image's /etc/group.
    #[default]
    Merge,
    /// None.
    Strict,
}

/// When volumes are given to the pod's group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FsGroupChange {
    #[default]
    Always,
    /// When the volume's own folder is not the group's yet.
    OnRootMismatch,
}

/// An SELinux label's parts; empty: the runtime's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeLinux {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// Which system calls are possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    Unconfined,
    RuntimeDefault,
    /// A file on the node, relative to its folder of profiles.
    Localhost(String),
}

/// Which AppArmor profile holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppArmor {
    Unconfined,
    RuntimeDefault,
    /// One that is loaded on the node.
    Localhost(String),
}

const WINDOWS: &str = "this is Linux";

impl PodSecurity {
    /// Reads a pod's `securityContext`.
    pub(crate) fn read(fields: &mut Fields<'_>) -> PodSecurity {
        let read = fields.object("securityContext", |fields| PodSecurity {
            defaults: common(fields),
            supplemental_groups: groups(fields),
            supplemental_groups_policy: fields
                .word(
                    "supplementalGroupsPolicy",
                    &[("Merge", SupplementalGroups::Merge), ("Strict", SupplementalGroups::Strict)],
                )
                .unwrap_or_default(),
            fs_group: fields.integer("fsGroup", ID),
            fs_group_change: fields
                .word(
                    "fsGroupChangePolicy",
                    &[("Always", FsGroupChange::Always), ("OnRootMismatch", FsGroupChange::OnRootMismatch)],
                )
                .unwrap_or_default(),
            sysctls: fields.objects("sysctls", |fields| {
                (fields.required("name"), fields.string("value").unwrap_or_default())
            }),
        });
        read.unwrap_or_default()
    }
}

/// User and group ids.
const ID: std::ops::RangeInclusive<i64> = 0..=i32::MAX as i64;

fn groups(fields: &mut Fields<'_>) -> Vec<i64> {
    let groups = fields.integers("supplementalGroups");
    if groups.iter().any(|group| !ID.contains(group)) {
        fields.fault("supplementalGroups", format!("groups are from 0 to {}", ID.end()));
    }
    groups
}

/// What stands at both levels.
fn common(fields: &mut Fields<'_>) -> Security {
    fields.refuse(&["windowsOptions"], WINDOWS);
    fields.meaningless(&["seLinuxChangePolicy"], "volumes are not relabelled by mounting");
    Security {
        run_as_user: fields.integer("runAsUser", ID),
        run_as_group: fields.integer("runAsGroup", ID),
        run_as_non_root: fields.boolean("runAsNonRoot"),
        se_linux: fields.object("seLinuxOptions", |fields| {
            let mut part = |key| fields.string(key).unwrap_or_default();
            SeLinux { user: part("user"), role: part("role"), kind: part("type"), level: part("level") }
        }),
        seccomp: profile(fields, "seccompProfile").map(|(kind, localhost)| match kind {
            Kind::Unconfined => Seccomp::Unconfined,
            Kind::RuntimeDefault => Seccomp::RuntimeDefault,
            Kind::Localhost => Seccomp::Localhost(localhost),
        }),
        app_armor: profile(fields, "appArmorProfile").map(|(kind, localhost)| match kind {
            Kind::Unconfined => AppArmor::Unconfined,
            Kind::RuntimeDefault => AppArmor::RuntimeDefault,
            Kind::Localhost => AppArmor::Localhost(localhost),
        }),
        ..Security::default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unconfined,
    RuntimeDefault,
    Localhost,
}

fn profile(fields: &mut Fields<'_>, key: &'static str) -> Option<(Kind, String)> {
    fields.object(key, |fields| {
        let kinds = [
            ("RuntimeDefault", Kind::RuntimeDefault),
            ("Localhost", Kind::Localhost),
            ("Unconfined", Kind::Unconfined),
        ];
        fields.demand("type");
        let kind = fields.word("type", &kinds)?;
        let check = |text: &str| match key {
            "seccompProfile" => names::path_below(text),
            _ => Ok(text.to_owned()),
        };
        let localhost = match kind {
            Kind::Localhost => fields.required_as("localhostProfile", check)?,
            Kind::Unconfined | Kind::RuntimeDefault => {
                fields.refuse(&["localhostProfile"], "goes with type: Localhost");
                String::new()
            }
        };
        Some((kind, localhost))
    })?
}

impl Security {
    /// Reads a container's `securityContext`.
    pub(crate) fn read(fields: &mut Fields<'_>) -> Security {
        let read = fields.object("securityContext", |fields| {
            let mut security = common(fields);
            security.privileged = fields.flag("privileged");
            security.allow_privilege_escalation = fields.boolean("allowPrivilegeEscalation");
            security.read_only_root_filesystem = fields.flag("readOnlyRootFilesystem");
            let proc_mounts = [("Default", false), ("Unmasked", true)];
            security.unmasked_proc = fields.word("procMount", &proc_mounts).unwrap_or(false);
            let capabilities =
                fields.object("capabilities", |fields| (fields.strings("add"), fields.strings("drop")));
            (security.add_capabilities, security.drop_capabilities) = capabilities.unwrap_or_default();
            if security.allow_privilege_escalation == Some(false) {
                let needs = |what| format!("cannot be false for a container with {what}");
                if security.privileged {
                    fields.fault("allowPrivilegeEscalation", needs("privileged: true"));
                }
                let admin = |name: &String| matches!(name.as_str(), "SYS_ADMIN" | "CAP_SYS_ADMIN");
                if security.add_capabilities.iter().any(admin) {
                    fields.fault("allowPrivilegeEscalation", needs("the capability SYS_ADMIN"));
                }
            }
            security
        });
        read.unwrap_or_default()
    }

    /// With what the pod says where this says nothing.
    pub fn within(&self, pod: &PodSecurity) -> Security {
        let defaults = pod.defaults.clone();
        let own = self.clone();
        Security {
            run_as_user: own.run_as_user.or(defaults.run_as_user),
            run_as_group: own.run_as_group.or(defaults.run_as_group),
            run_as_non_root: own.run_as_non_root.or(defaults.run_as_non_root),
            se_linux: own.se_linux.or(defaults.se_linux),
            seccomp: own.seccomp.or(defaults.seccomp),
            app_armor: own.app_armor.or(defaults.app_armor),
            ..own
        }
    }
}
