// What must hold of any `.sandbox.toml`; panics if it does not.

use super::Project;
use sandbox_core::launch::Limits;

/// It can only tighten, whatever it says, and what is wrong with it can be printed in one line.
pub fn project(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let project = match Project::parse(text) {
        Ok(project) => project,
        Err(_) => return,
    };
    let user = Limits { memory: Some(1 << 30), pids: Some(100), cpu_percent: Some(150), disk: Some(1 << 20) };
    let tight = project.tighten(user.clone());
    assert!(tight.memory <= user.memory && tight.memory.is_some());
    assert!(tight.pids <= user.pids && tight.pids.is_some());
    assert_eq!(tight.cpu_percent, user.cpu_percent);
    assert!(tight.disk <= user.disk && tight.disk.is_some());
    let mut both = Project::default();
    both.and(&project);
    assert_eq!(
        (both.offline, both.timeout, both.min_isolation),
        (project.offline, project.timeout, project.min_isolation)
    );
    assert_eq!((&both.deny, &both.require), (&project.deny, &project.require));
    // With it twice nothing is asked that was not asked for.
    let once = both.clone();
    both.and(&project);
    assert_eq!((both.limits, both.offline, both.timeout), (once.limits, once.offline, once.timeout));
}
