//! Who a container runs as: names and numbers of the request and the image, looked up in the image's own `/etc/passwd`
//! and `/etc/group`.
//!
//! The rules are containerd's, which kubelet is written against. The files are an image author's: lines that are not
//! entries are passed over, whatever they hold.

use berth_cri::runtime::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use std::collections::BTreeSet;

/// Ids above this are not taken: other software keeps them in signed integers, where they turn into root's.
const MAX_ID: u32 = i32::MAX as u32;

/// The kernel takes no more supplementary groups (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// The numbers a container's processes run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, ascending; the primary group is one of them, as setgroups(2) of a login would have it.
    pub additional_gids: Vec<u32>,
    /// The home directory of the user's passwd entry; `/` without one.
    pub home: String,
}

/// Why a user or a group cannot be resolved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("security_context.run_as_group {gid} needs run_as_user or run_as_username beside it")]
    GroupWithoutUser { gid: i64 },
    #[error("user {name:?} is not in the image's /etc/passwd")]
    UnknownUser { name: String },
    #[error("group {name:?} is not in the image's /etc/group")]
    UnknownGroup { name: String },
    #[error("{field}: {value} is not between 0 and 2147483647")]
    OutOfRange { field: &'static str, value: String },
    #[error("user {value:?} is not of the form USER or USER:GROUP")]
    Malformed { value: String },
    #[error("security_context.supplemental_groups_policy: {value} is neither Merge (0) nor Strict (1)")]
    UnknownPolicy { value: i32 },
    #[error("supplementary groups: {count} are more than the kernel's 65536")]
    TooManyGroups { count: usize },
}

/// Resolves the user of a container. `passwd` and `group` are the image's files, `None` where it has none.
///
/// The request's user (a name before a number) goes before the image's, and root is used where neither names one. A
/// number needs no passwd entry and then has group 0; a name needs one. `run_as_group` replaces the primary group only.
/// The request's supplementary groups are added to those in which `/etc/group` lists the user (policy Merge), or stand
/// alone (policy Strict).
///
/// # Errors
/// See [`UserError`]; all are the caller's or the image's fault.
pub fn resolve_user(
    security: Option<&LinuxContainerSecurityContext>,
    image_user: &str,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<ResolvedUser, UserError> {
    let (passwd, group) = (passwd.unwrap_or_default(), group.unwrap_or_default());
    let nothing = LinuxContainerSecurityContext::default();
    let asked = security.unwrap_or(&nothing);
    let policy = SupplementalGroupsPolicy::try_from(asked.supplemental_groups_policy)
        .map_err(|_| UserError::UnknownPolicy { value: asked.supplemental_groups_policy })?;

    let text = match (&asked.run_as_user, &asked.run_as_group) {
        _ if !asked.run_as_username.is_empty() => asked.run_as_username.clone(),
        (Some(uid), _) => checked("security_context.run_as_user", uid.value)?.to_string(),
        (None, Some(gid)) => return Err(UserError::GroupWithoutUser { gid: gid.value }),
        (None, None) if image_user.is_empty() => "0".to_owned(),
        (None, None) => image_user.to_owned(),
    };
    let (user, named_group) = split(&text)?;
    let account = Account::find(user, passwd)?;
    let gid = match (&asked.run_as_group, named_group) {
        (Some(gid), _) => checked("security_context.run_as_group", gid.value)?,
        (None, Some(name)) => find_group(name, group)?,
        (None, None) => account.gid,
    };

    let mut gids = BTreeSet::from([gid]);
    for extra in &asked.supplemental_groups {
        gids.insert(checked("security_context.supplemental_groups", *extra)?);
    }
    if let (SupplementalGroupsPolicy::Merge, Some(name)) = (policy, account.name) {
        gids.extend(groups(group).filter(|entry| entry.lists(name)).map(|entry| entry.gid));
    }
    if gids.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups { count: gids.len() });
    }
    Ok(ResolvedUser {
        uid: account.uid,
        gid,
        additional_gids: gids.into_iter().collect(),
        home: account.home,
    })
}

/// An id of the request.
fn checked(field: &'static str, value: i64) -> Result<u32, UserError> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id <= MAX_ID)
        .ok_or_else(|| UserError::OutOfRange { field, value: value.to_string() })
}

/// `USER` or `USER:GROUP`; an empty group is none.
fn split(text: &str) -> Result<(&str, Option<&str>), UserError> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let group = group.filter(|group| !group.is_empty());
    if user.is_empty() || group.is_some_and(|group| group.contains(':')) {
        return Err(UserError::Malformed { value: text.to_owned() });
    }
    Ok((user, group))
}

/// Text that is all digits is an id, never a name, even if an entry has that name.
fn number(field: &'static str, text: &str) -> Option<Result<u32, UserError>> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let id = text.parse().ok().filter(|id| *id <= MAX_ID);
    Some(id.ok_or_else(|| UserError::OutOfRange { field, value: text.to_owned() }))
}

fn find_group(text: &str, file: &[u8]) -> Result<u32, UserError> {
    match number("group", text) {
        Some(id) => id,
        None => groups(file)
            .find(|entry| entry.name == text.as_bytes())
            .map(|entry| entry.gid)
            .ok_or_else(|| UserError::UnknownGroup { name: text.to_owned() }),
    }
}

/// A user, with what passwd knows about it.
struct Account<'a> {
    uid: u32,
    gid: u32,
    /// What `/etc/group` lists it by; a number without an entry has none.
    name: Option<&'a [u8]>,
    home: String,
}

impl<'a> Account<'a> {
    fn find(text: &str, file: &'a [u8]) -> Result<Self, UserError> {
        let mut entries = users(file);
        let (entry, uid) = match number("user", text) {
            Some(uid) => {
                let uid = uid?;
                (entries.find(|entry| entry.uid == uid), uid)
            }
            None => {
                let entry = entries.find(|entry| entry.name == text.as_bytes());
                let entry = entry.ok_or_else(|| UserError::UnknownUser { name: text.to_owned() })?;
                let uid = entry.uid;
                (Some(entry), uid)
            }
        };
        Ok(Self {
            uid,
            gid: entry.as_ref().map_or(0, |entry| entry.gid),
            name: entry.as_ref().map(|entry| entry.name),
            home: entry.and_then(|entry| home(entry.home)).unwrap_or_else(|| "/".to_owned()),
        })
    }
}

/// A home directory fit to be an environment variable.
fn home(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes)
        .ok()
        .filter(|home| home.starts_with('/') && !home.contains('\0'))
        .map(str::to_owned)
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn lists(&self, name: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == name)
    }
}

/// passwd(5): `name:password:uid:gid:comment:home:shell`.
fn users(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// group(5): `name:password:gid:member,member`.
fn groups(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.starts_with(b"#"))
}

/// A number in range: an entry with any other is no entry, lest it be taken for root's.
fn id(field: &[u8]) -> Option<u32> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(field).ok().filter(|_| digits)?.parse().ok().filter(|id| *id <= MAX_ID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_cri::runtime::v1::Int64Value;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken line\n\
        evil:x:4294967296:0::/:/bin/sh\n\
        negative:x:-1:-1::/:/bin/sh\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\r\n\
        1001:x:7:7::/seven:/bin/sh\n\
        web:x:1000:1000:Web:/srv/web:/bin/sh\n";
    const GROUP: &[u8] =
        b"root:x:0:root\nwheel:x:10:root, web\nweb:x:1000:\nmedia:x:50000:other,web\nbad:x:x:web\n";

    fn resolve(
        security: &LinuxContainerSecurityContext,
        image_user: &str,
    ) -> Result<ResolvedUser, UserError> {
        resolve_user(Some(security), image_user, Some(PASSWD), Some(GROUP))
    }

    fn user(id: i64) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext { run_as_user: Some(Int64Value { value: id }), ..Default::default() }
    }

    fn ids(user: &ResolvedUser) -> (u32, u32, &[u32]) {
        (user.uid, user.gid, &user.additional_gids)
    }

    #[test]
    fn nobody_named_anywhere_is_root_with_its_groups() {
        let root = resolve_user(None, "", Some(PASSWD), Some(GROUP)).unwrap();
        assert_eq!(ids(&root), (0, 0, &[0, 10][..]));
        assert_eq!(root.home, "/root");
        let bare = resolve_user(None, "", None, None).unwrap();
        assert_eq!(ids(&bare), (0, 0, &[0][..]));
        assert_eq!(bare.home, "/");
    }

    #[test]
    fn image_user_in_all_its_forms() {
        let none = LinuxContainerSecurityContext::default();
        for (text, expected) in [
            ("web", (1000, 1000, &[10, 1000, 50000][..])),
            ("1000", (1000, 1000, &[10, 1000, 50000])),
            ("web:wheel", (1000, 10, &[10, 50000])),
            ("web:77", (1000, 77, &[10, 77, 50000])),
            ("web:", (1000, 1000, &[10, 1000, 50000])),
            ("4242", (4242, 0, &[0])),
            ("4242:4243", (4242, 4243, &[4243])),
            // All digits is an id, although an entry is called so.
            ("1001", (1001, 0, &[0])),
        ] {
            assert_eq!(ids(&resolve(&none, text).unwrap()), expected, "{text}");
        }
        assert_eq!(resolve(&none, "daemon").unwrap().home, "/usr/sbin");
    }

    #[test]
    fn request_goes_before_the_image_and_its_group_replaces_the_primary_one() {
        assert_eq!(ids(&resolve(&user(1000), "root").unwrap()), (1000, 1000, &[10, 1000, 50000][..]));
        let group =
            LinuxContainerSecurityContext { run_as_group: Some(Int64Value { value: 5 }), ..user(1000) };
        assert_eq!(ids(&resolve(&group, "").unwrap()), (1000, 5, &[5, 10, 50000][..]));
        let name = LinuxContainerSecurityContext { run_as_username: "web".into(), ..Default::default() };
        assert_eq!(ids(&resolve(&name, "root").unwrap()), (1000, 1000, &[10, 1000, 50000][..]));
    }

    #[test]
    fn group_of_the_request_needs_a_user_of_the_request() {
        let group = LinuxContainerSecurityContext {
            run_as_group: Some(Int64Value { value: 5 }),
            ..Default::default()
        };
        assert_eq!(resolve(&group, "web"), Err(UserError::GroupWithoutUser { gid: 5 }));
    }

    #[test]
    fn supplementary_groups_are_merged_or_stand_alone() {
        let merge = LinuxContainerSecurityContext { supplemental_groups: vec![1234], ..user(1000) };
        assert_eq!(resolve(&merge, "").unwrap().additional_gids, [10, 1000, 1234, 50000]);
        let strict = LinuxContainerSecurityContext { supplemental_groups_policy: 1, ..merge };
        assert_eq!(resolve(&strict, "").unwrap().additional_gids, [1000, 1234]);
        let unknown = LinuxContainerSecurityContext { supplemental_groups_policy: 9, ..strict };
        assert_eq!(resolve(&unknown, ""), Err(UserError::UnknownPolicy { value: 9 }));
    }

    #[test]
    fn what_is_not_there_or_out_of_range_is_an_error() {
        let none = LinuxContainerSecurityContext::default();
        assert!(matches!(resolve(&none, "nobody"), Err(UserError::UnknownUser { .. })));
        assert!(matches!(resolve(&none, "evil"), Err(UserError::UnknownUser { .. })));
        assert!(matches!(resolve(&none, "negative"), Err(UserError::UnknownUser { .. })));
        assert!(matches!(resolve(&none, "web:nogroup"), Err(UserError::UnknownGroup { .. })));
        assert!(matches!(resolve(&none, "web:a:b"), Err(UserError::Malformed { .. })));
        assert!(matches!(resolve(&none, ":wheel"), Err(UserError::Malformed { .. })));
        // 2^32 would be root's number, cut to 32 bits.
        assert!(matches!(resolve(&none, "4294967296"), Err(UserError::OutOfRange { .. })));
        assert!(matches!(resolve(&none, "2147483648"), Err(UserError::OutOfRange { .. })));
        assert!(matches!(resolve(&none, "-1"), Err(UserError::OutOfRange { .. })));
        assert!(matches!(resolve(&user(-1), ""), Err(UserError::OutOfRange { .. })));
        assert!(matches!(resolve(&user(1 << 32), ""), Err(UserError::OutOfRange { .. })));
    }

    proptest! {
        #[test]
        fn hostile_files_neither_panic_nor_make_a_number_root(
            passwd in proptest::collection::vec(prop::sample::select(b"a0159:\n\r\0#-,x\xff".to_vec()), 0..200),
            group in proptest::collection::vec(prop::sample::select(b"a0159:\n\r\0#-,x\xff".to_vec()), 0..200),
            uid in 1u32..=MAX_ID,
        ) {
            let found = resolve_user(Some(&user(i64::from(uid))), "", Some(&passwd), Some(&group)).unwrap();
            prop_assert_eq!(found.uid, uid);
            prop_assert!(found.additional_gids.contains(&found.gid));
            prop_assert!(found.home.starts_with('/') && !found.home.contains('\0'));
            let _ = resolve_user(None, "a", Some(&passwd), Some(&group));
        }

        #[test]
        fn a_well_formed_entry_is_found_among_any_lines(
            noise in proptest::collection::vec("[^\n]{0,40}", 0..20),
            at in 0usize..20,
            uid in 0u32..=MAX_ID,
            gid in 0u32..=MAX_ID,
        ) {
            let mut lines: Vec<String> = noise.into_iter().filter(|line| !line.trim_start().starts_with("needle:")).collect();
            lines.insert(at.min(lines.len()), format!("needle:x:{uid}:{gid}::/home:"));
            let found = resolve_user(None, "needle", Some(lines.join("\n").as_bytes()), None).unwrap();
            prop_assert_eq!((found.uid, found.gid, found.home.as_str()), (uid, gid, "/home"));
        }
    }
}
