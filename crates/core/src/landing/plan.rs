//! Which refs of the host a sandbox's state means: decided here, as a value, without any process.
//!
//! ```text
//! refs/sandbox/<name>                   the branch that HEAD is on; while an operation has HEAD
//!                                       detached, the branch that it returns to
//! refs/sandbox-meta/<name>/
//!   owner                               who wrote all this (a blob)
//!   head                                HEAD, when it is detached on something new
//!   heads/…  tags/…  notes/…            what was created or moved inside
//!   stash/<n>  reflog/<n>               entries, and tips that only a reflog reaches
//! ```

use super::names::escape_ref;
use crate::id::Name;
use sandbox_git::{ObjectFormat, Oid, RefName, printable};
use sandbox_protocol::{RepoState, unescape_bytes};
use std::collections::{BTreeMap, BTreeSet};

/// The most refs that one sandbox brings.
pub const MAX_REFS: usize = 1000;

/// The longest name below `heads`, `tags`, `notes`, in bytes.
const MAX_NAME: usize = 200;

/// The most tips that only reflogs reach.
const MAX_TIPS: usize = 100;

/// What a sandbox started from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The branch that was checked out.
    pub branch: Option<RefName>,
    /// Its refs at the start (see `gitdir::granted_refs`).
    pub refs: BTreeMap<RefName, Oid>,
    /// Every id that was granted.
    pub granted: BTreeSet<Oid>,
}

/// One ref that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// In the host.
    pub name: RefName,
    /// Inside, for messages: `refs/heads/x`, `HEAD`, `stash@{0}`.
    pub inner: String,
    /// What it shall be.
    pub new: Oid,
    /// What it is now.
    pub old: Option<Oid>,
}

/// A ref from inside that is not brought, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRef {
    /// Its name inside, escaped for printing.
    pub inner: String,
    /// Why.
    pub reason: String,
}

/// What a commit-back will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefPlan {
    /// In order; refs that are right already are not in it.
    pub updates: Vec<Planned>,
    /// Refused by name.
    pub refused: Vec<RefusedRef>,
}

/// Plans the refs of one repository. `state` is what an agent said: every name and id is checked
/// here. `existing` holds the host's refs under `refs/sandbox/<name>` and `refs/sandbox-meta/<name>/`.
pub fn plan_refs(
    name: &Name,
    state: &RepoState,
    base: &Base,
    existing: &BTreeMap<RefName, Oid>,
    format: ObjectFormat,
) -> RefPlan {
    let mut plan =
        Planner { format, existing, base, meta: format!("refs/sandbox-meta/{name}"), plan: RefPlan::default() };
    let mut refs: BTreeMap<Vec<u8>, Oid> = BTreeMap::new();
    for (inner, id) in state.refs.iter().take(100_000) {
        let bytes = unescape_bytes(inner);
        if let (Some(oid), true) = (plan.id(inner, id), RefName::parse(&bytes).is_some()) {
            refs.insert(bytes, oid);
        } else if RefName::parse(&bytes).is_none() {
            plan.refuse(inner, "not a valid ref name");
        }
    }
    let head = state.head.as_ref().and_then(|id| plan.id("HEAD", id));
    let tip = |branch: &Option<String>| branch.as_ref().and_then(|name| refs.get(&unescape_bytes(name)).copied());
    let main = RefName::parse(format!("refs/sandbox/{name}"));
    let followed = match (&state.head_ref, &state.operation_branch) {
        (Some(_), _) => tip(&state.head_ref).or(head),
        (None, Some(_)) => tip(&state.operation_branch),
        // Detached from the start: there is no branch to follow.
        (None, None) if base.branch.is_none() => head,
        // A look at something old moves nothing.
        (None, None) => None,
    };
    if let (Some(main), Some(oid)) = (main, followed) {
        plan.set(main, "HEAD", oid, true);
    }
    if let Some(oid) = head.filter(|_| state.head_ref.is_none()) {
        plan.meta("head", "HEAD", oid, true);
    }
    for (inner, oid) in &refs {
        for kind in ["heads", "tags", "notes"] {
            let Some(short) = inner.strip_prefix(format!("refs/{kind}/").as_bytes()) else { continue };
            let unchanged = RefName::parse(inner).is_some_and(|name| base.refs.get(&name) == Some(oid));
            if unchanged && !plan.exists(&format!("{kind}/{}", escape_ref(short))) {
                continue;
            }
            let escaped = escape_ref(short);
            let shown = printable(inner);
            if escaped.len() > MAX_NAME {
                plan.refuse(&shown, &format!("its name is longer than {MAX_NAME} bytes"));
            } else {
                plan.meta(&format!("{kind}/{escaped}"), &shown, *oid, false);
            }
        }
    }
    for (n, id) in state.stash.iter().enumerate() {
        let inner = format!("stash@{{{n}}}");
        if let Some(oid) = plan.id(&inner, id) {
            plan.meta(&format!("stash/{n}"), &inner, oid, true);
        }
    }
    let mut tips: Vec<Oid> = state.reflog_tips.iter().filter_map(|id| plan.id("a reflog entry", id)).collect();
    tips.retain(|oid| !base.granted.contains(oid));
    tips.sort();
    tips.dedup();
    let cut = tips.len().saturating_sub(MAX_TIPS);
    if cut > 0 {
        plan.refuse("reflog", &format!("{cut} of its tips are more than {MAX_TIPS}"));
    }
    // A tip keeps the number that it has: the list inside changes from one time to the next.
    let known = plan.numbered("reflog/");
    let free = known.keys().next_back().map_or(0, |n| n + 1)..;
    let new = tips.into_iter().take(MAX_TIPS).filter(|oid| !known.values().any(|known| known == oid));
    for (n, oid) in free.zip(new) {
        plan.meta(&format!("reflog/{n}"), "a reflog entry", oid, true);
    }
    let mut plan = plan.plan;
    for planned in plan.updates.split_off(plan.updates.len().min(MAX_REFS)) {
        let reason = format!("a sandbox brings at most {MAX_REFS} refs");
        plan.refused.push(RefusedRef { inner: planned.inner, reason });
    }
    plan
}

struct Planner<'a> {
    format: ObjectFormat,
    existing: &'a BTreeMap<RefName, Oid>,
    base: &'a Base,
    meta: String,
    plan: RefPlan,
}

impl Planner<'_> {
    fn id(&mut self, inner: &str, id: &str) -> Option<Oid> {
        let oid = Oid::parse(id).filter(|oid| oid.format() == self.format && !oid.is_null());
        if oid.is_none() {
            self.refuse(inner, &format!("'{}' is not a {} id", printable(id.as_bytes()), self.format));
        }
        oid
    }

    fn refuse(&mut self, inner: &str, reason: &str) {
        if self.plan.refused.len() < MAX_REFS {
            self.plan.refused.push(RefusedRef { inner: printable(inner.as_bytes()), reason: reason.to_owned() });
        }
    }

    fn exists(&self, short: &str) -> bool {
        RefName::parse(format!("{}/{short}", self.meta)).is_some_and(|name| self.existing.contains_key(&name))
    }

    /// Existing refs `…/<prefix><n>`, by number.
    fn numbered(&self, prefix: &str) -> BTreeMap<u64, Oid> {
        let full = format!("{}/{prefix}", self.meta);
        let number = |name: &RefName| name.to_str()?.strip_prefix(full.as_str())?.parse().ok();
        self.existing.iter().filter_map(|(name, oid)| Some((number(name)?, *oid))).collect()
    }

    fn meta(&mut self, short: &str, inner: &str, new: Oid, only_new: bool) {
        match RefName::parse(format!("{}/{short}", self.meta)) {
            Some(name) => self.set(name, inner, new, only_new),
            None => self.refuse(inner, "not a valid ref name"),
        }
    }

    /// With `only_new` a ref is not begun for something that the host has granted anyway.
    fn set(&mut self, name: RefName, inner: &str, new: Oid, only_new: bool) {
        let old = self.existing.get(&name).copied();
        if old == Some(new) || (only_new && old.is_none() && self.base.granted.contains(&new)) {
            return;
        }
        self.plan.updates.push(Planned { name, inner: inner.to_owned(), new, old });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> String {
        format!("{n:02x}").repeat(20)
    }

    fn oid(n: u8) -> Oid {
        Oid::parse(id(n)).unwrap()
    }

    fn base() -> Base {
        let main = RefName::parse("refs/heads/main").unwrap();
        Base {
            branch: Some(main.clone()),
            refs: BTreeMap::from([(main, oid(1))]),
            granted: BTreeSet::from([oid(1), oid(9)]),
        }
    }

    fn state(head_ref: Option<&str>, head: u8, refs: &[(&str, u8)]) -> RepoState {
        RepoState {
            head_ref: head_ref.map(str::to_owned),
            head: Some(id(head)),
            refs: refs.iter().map(|(name, n)| ((*name).to_owned(), id(*n))).collect(),
            ..RepoState::default()
        }
    }

    fn text(plan: &RefPlan) -> Vec<String> {
        let update = |p: &Planned| {
            format!(
                "{} {} -> {}",
                p.name,
                p.old.map_or("new".into(), |o| o.short()[..2].to_owned()),
                &p.new.short()[..2]
            )
        };
        plan.updates
            .iter()
            .map(update)
            .chain(plan.refused.iter().map(|r| format!("{}: {}", r.inner, r.reason)))
            .collect()
    }

    fn plan(state: &RepoState, existing: &[(&str, u8)]) -> Vec<String> {
        let existing = existing.iter().map(|(name, n)| (RefName::parse(name).unwrap(), oid(*n))).collect();
        text(&plan_refs(&Name::parse("fix").unwrap(), state, &base(), &existing, ObjectFormat::Sha1))
    }

    #[test]
    fn nothing_new_plans_nothing() {
        assert!(plan(&state(Some("refs/heads/main"), 1, &[("refs/heads/main", 1)]), &[]).is_empty());
    }

    #[test]
    fn a_new_branch_is_followed_and_kept_by_name() {
        let state =
            state(Some("refs/heads/a/b"), 2, &[("refs/heads/main", 1), ("refs/heads/a/b", 2), ("refs/tags/v1", 2)]);
        assert_eq!(
            plan(&state, &[("refs/sandbox/fix", 3)]),
            [
                "refs/sandbox/fix 03 -> 02",
                "refs/sandbox-meta/fix/heads/a+/b new -> 02",
                "refs/sandbox-meta/fix/tags/v1 new -> 02",
            ]
        );
    }

    #[test]
    fn during_a_rebase_the_name_stays_at_the_branch() {
        let mut state = state(None, 5, &[("refs/heads/main", 2)]);
        state.operation_branch = Some("refs/heads/main".into());
        assert_eq!(
            plan(&state, &[("refs/sandbox/fix", 2), ("refs/sandbox-meta/fix/heads/main", 2)]),
            ["refs/sandbox-meta/fix/head new -> 05"]
        );
    }

    #[test]
    fn looking_at_something_old_moves_nothing() {
        assert!(plan(&state(None, 9, &[("refs/heads/main", 1)]), &[]).is_empty());
        assert_eq!(plan(&state(None, 4, &[("refs/heads/main", 1)]), &[]), ["refs/sandbox-meta/fix/head new -> 04"]);
    }

    #[test]
    fn a_branch_moved_back_moves_its_ref_back() {
        assert_eq!(
            plan(
                &state(Some("refs/heads/main"), 1, &[("refs/heads/main", 1)]),
                &[("refs/sandbox/fix", 2), ("refs/sandbox-meta/fix/heads/main", 2)]
            ),
            ["refs/sandbox/fix 02 -> 01", "refs/sandbox-meta/fix/heads/main 02 -> 01"]
        );
    }

    #[test]
    fn stash_and_reflog_tips_are_brought_once() {
        let mut state = state(Some("refs/heads/main"), 1, &[("refs/heads/main", 1), ("refs/stash", 6)]);
        state.stash = vec![id(6), id(9)];
        state.reflog_tips = vec![id(8), id(7), id(1)];
        assert_eq!(
            plan(&state, &[("refs/sandbox-meta/fix/reflog/4", 8)]),
            ["refs/sandbox-meta/fix/stash/0 new -> 06", "refs/sandbox-meta/fix/reflog/5 new -> 07"]
        );
    }

    #[test]
    fn hostile_names_and_ids_are_refused_one_by_one() {
        let long = format!("refs/heads/{}", "x".repeat(201));
        let mut state = state(
            Some("refs/heads/main"),
            2,
            &[
                ("refs/heads/main", 2),
                ("refs/heads/..", 2),
                ("refs/heads/\u{1b}]0;x", 2),
                (&long, 2),
                ("refs/heads/b;touch${IFS}x", 2),
                ("refs/replace/x", 2),
            ],
        );
        state.refs.push(("refs/heads/short".into(), "abc\u{7}".into()));
        let lines = plan(&state, &[]);
        assert_eq!(
            lines[..3],
            [
                "refs/sandbox/fix new -> 02",
                "refs/sandbox-meta/fix/heads/b%3Btouch%24%7BIFS%7Dx new -> 02",
                "refs/sandbox-meta/fix/heads/main new -> 02",
            ]
        );
        assert_eq!(lines.len(), 7);
        assert!(lines.iter().all(|line| !line.contains(char::is_control)), "{lines:?}");
    }

    #[test]
    fn a_thousand_refs_and_no_more() {
        let many: Vec<(String, String)> = (0..3000).map(|n| (format!("refs/heads/b{n:04}"), id(2))).collect();
        let state = RepoState { refs: many, ..RepoState::default() };
        let plan = plan_refs(&Name::parse("fix").unwrap(), &state, &base(), &BTreeMap::new(), ObjectFormat::Sha1);
        assert_eq!(plan.updates.len(), MAX_REFS);
        assert_eq!(plan.refused.len(), 2000);
    }
}
