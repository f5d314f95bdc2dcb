//! What a refresh does to refs, as a value.
//!
//! ```text
//! 1  delete   names that stand in the way of new ones (`a` of `a/b`, `a/b` of `a`); pins
//! 2  update   new and moved refs
//!    HEAD
//! 3  delete   what is gone
//! ```
//!
//! Each step is one transaction. Two only for names that exclude each other: git cannot delete `a` and make `a/b`
//! in one. `HEAD` never names a branch that is not there, if the upstream's does not.

use super::ask::Advertised;
use sandbox_git::{Oid, RefName};
use std::collections::{BTreeMap, BTreeSet};

/// What is to be done to the refs of a mirror.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefPlan {
    /// Deleted before anything is made.
    pub first: Vec<RefName>,
    /// Made or moved.
    pub update: Vec<(RefName, Oid)>,
    /// Deleted at the end.
    pub last: Vec<RefName>,
    /// Tips that were advertised and are not any more: pinned unless they are part of what is.
    pub left: BTreeSet<Oid>,
    /// Tips that were not there.
    pub new: BTreeSet<Oid>,
    /// What `HEAD` shall name, if it does not.
    pub head: Option<RefName>,
}

impl RefPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.update.is_empty() && self.first.is_empty() && self.last.is_empty() && self.head.is_none()
    }

    /// Compares what the mirror has (heads and tags) with what is advertised.
    pub fn new(have: &BTreeMap<RefName, Oid>, head: Option<&RefName>, upstream: &Advertised) -> Self {
        let mut plan = Self::default();
        for (name, oid) in &upstream.refs {
            match have.get(name) {
                Some(old) if old == oid => {}
                old => {
                    plan.left.extend(old);
                    plan.update.push((name.clone(), *oid));
                }
            }
        }
        let tips: BTreeSet<&Oid> = have.values().collect();
        plan.new = plan.update.iter().map(|(_, oid)| *oid).filter(|oid| !tips.contains(oid)).collect();
        for (name, old) in have {
            if !upstream.refs.contains_key(name) {
                plan.left.insert(*old);
                let in_the_way = plan.update.iter().any(|(new, _)| excludes(new, name));
                if in_the_way { plan.first.push(name.clone()) } else { plan.last.push(name.clone()) }
            }
        }
        for oid in upstream.refs.values() {
            plan.left.remove(oid);
        }
        plan.head = wanted_head(head, upstream).filter(|wanted| Some(wanted) != head);
        plan
    }
}

/// Whether two names cannot both be refs: one is a directory of the other.
fn excludes(a: &RefName, b: &RefName) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let below = |long: &[u8], short: &[u8]| long.starts_with(short) && long.get(short.len()) == Some(&b'/');
    below(a, b) || below(b, a)
}

/// The branch that `HEAD` shall name: the upstream's; where it names none (it is detached, or too old to say), what
/// we have if that is still there, else a branch at the same commit, best one with a usual name.
fn wanted_head(now: Option<&RefName>, upstream: &Advertised) -> Option<RefName> {
    if let Some(head) = &upstream.head {
        return Some(head.clone());
    }
    if let Some(now) = now.filter(|now| upstream.refs.contains_key(now)) {
        return Some(now.clone());
    }
    let oid = upstream.head_oid?;
    let at_it = |name: &&RefName| name.as_bytes().starts_with(b"refs/heads/") && upstream.refs[*name] == oid;
    let mut same: Vec<&RefName> = upstream.refs.keys().filter(at_it).collect();
    same.sort_by_key(|name| !matches!(name.to_str(), Some("refs/heads/main" | "refs/heads/master")));
    same.first().map(|name| (*name).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn oid(digit: u8) -> Oid {
        Oid::from_raw(&[digit; 20]).unwrap()
    }

    fn name(text: &str) -> RefName {
        RefName::parse(text).unwrap()
    }

    fn refs(list: &[(&str, u8)]) -> BTreeMap<RefName, Oid> {
        list.iter().map(|(text, digit)| (name(text), oid(*digit))).collect()
    }

    fn upstream(head: Option<&str>, list: &[(&str, u8)]) -> Advertised {
        Advertised { head: head.map(name), refs: refs(list), ..Advertised::default() }
    }

    #[test]
    fn moves_deletions_and_a_branch_that_becomes_a_directory() {
        let have = refs(&[("refs/heads/a", 1), ("refs/heads/main", 2), ("refs/heads/old", 3), ("refs/tags/v1", 2)]);
        let head = name("refs/heads/main");
        let now =
            upstream(Some("refs/heads/trunk"), &[("refs/heads/a/b", 1), ("refs/heads/trunk", 4), ("refs/tags/v1", 2)]);
        let plan = RefPlan::new(&have, Some(&head), &now);
        assert_eq!(plan.first, [name("refs/heads/a")]);
        assert_eq!(plan.update, [(name("refs/heads/a/b"), oid(1)), (name("refs/heads/trunk"), oid(4))]);
        assert_eq!(plan.last, [name("refs/heads/main"), name("refs/heads/old")]);
        assert_eq!(plan.left, [oid(3)].into(), "2 is still a tag's, 1 another branch's");
        assert_eq!(plan.new, [oid(4)].into());
        assert_eq!(plan.head, Some(name("refs/heads/trunk")));
    }

    #[test]
    fn nothing_new_is_nothing_to_do() {
        let have = refs(&[("refs/heads/main", 1)]);
        let head = name("refs/heads/main");
        assert!(
            RefPlan::new(&have, Some(&head), &upstream(Some("refs/heads/main"), &[("refs/heads/main", 1)])).is_empty()
        );
    }

    #[test]
    fn an_upstream_that_went_empty_leaves_pins_and_the_head_that_was() {
        let have = refs(&[("refs/heads/main", 1), ("refs/heads/x", 2)]);
        let plan = RefPlan::new(&have, Some(&name("refs/heads/main")), &Advertised::default());
        assert_eq!(plan.left, [oid(1), oid(2)].into());
        assert_eq!((plan.last.len(), plan.head), (2, None));
    }

    #[test]
    fn a_detached_head_is_a_branch_at_its_commit() {
        let mut now = upstream(None, &[("refs/heads/b", 1), ("refs/heads/master", 1), ("refs/heads/z", 2)]);
        now.head_oid = Some(oid(1));
        assert_eq!(
            RefPlan::new(&refs(&[]), Some(&name("refs/heads/main")), &now).head,
            Some(name("refs/heads/master"))
        );
        assert_eq!(RefPlan::new(&refs(&[]), Some(&name("refs/heads/z")), &now).head, None);
    }

    fn any_refs() -> impl Strategy<Value = BTreeMap<RefName, Oid>> {
        let names = ["a", "a/b", "a/b/c", "b", "c/d", "c"].map(|text| name(&format!("refs/heads/{text}")));
        proptest::collection::btree_map(proptest::sample::select(names.to_vec()), (1u8..5).prop_map(oid), 0..5)
            // A store in which two names exclude each other cannot be.
            .prop_map(|all| {
                let names: Vec<RefName> = all.keys().cloned().collect();
                all.into_iter().filter(|(n, _)| !names.iter().any(|o| o < n && excludes(o, n))).collect()
            })
    }

    proptest! {
        #[test]
        fn done_in_its_order_it_makes_exactly_what_was_advertised(have in any_refs(), now in any_refs()) {
            let upstream = Advertised { refs: now.clone(), ..Advertised::default() };
            let plan = RefPlan::new(&have, None, &upstream);
            let mut refs = have.clone();
            for name in &plan.first {
                refs.remove(name);
            }
            for (name, oid) in &plan.update {
                prop_assert!(!refs.keys().any(|other| excludes(other, name)), "{name} is blocked");
                refs.insert(name.clone(), *oid);
            }
            for name in &plan.last {
                refs.remove(name);
            }
            prop_assert_eq!(&refs, &now);
            // Whatever was served is a tip still, or is looked at for a pin.
            for oid in have.values() {
                prop_assert!(now.values().any(|tip| tip == oid) || plan.left.contains(oid));
            }
        }
    }
}
