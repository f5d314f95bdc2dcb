//! Who tests run as.

use sandbox_testkit::is_root;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Login name of the ordinary user that is made when there is root.
pub const ORDINARY: &str = "git-sandbox-test";

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

impl User {
    /// Finds a user by name or by id in the text of a passwd file.
    fn find(passwd: &str, wanted: impl Fn(&str, u32) -> bool) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            wanted(name, uid).then(|| Self { name: name.to_owned(), uid, gid, home: home.into() })
        })
    }

    /// Returns who runs this program.
    pub fn current() -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::find(&passwd, |_, other| other == uid).unwrap_or_else(|| {
            let home = std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from);
            Self { name: format!("u{uid}"), uid, gid, home }
        })
    }

    /// Returns the ordinary user for tests, making them if they do not exist.
    pub fn ordinary(may_make: bool) -> Result<Self, String> {
        let find = || {
            let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
            Self::find(&passwd, |name, _| name == ORDINARY)
        };
        if let Some(user) = find() {
            return Ok(user);
        }
        if !may_make {
            return Err(format!("no user '{ORDINARY}', and none may be made"));
        }
        println!("making the ordinary user '{ORDINARY}' (`userdel -r {ORDINARY}` removes them)");
        let made = Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", ORDINARY]).output();
        match made {
            Ok(output) if output.status.success() => find().ok_or_else(|| "useradd made no user".to_owned()),
            Ok(output) => Err(format!("useradd: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("useradd: {error}")),
        }
    }

    /// Makes the command run as this user.
    pub fn apply(&self, command: &mut Command) {
        use std::os::unix::process::CommandExt;
        if is_root() && self.uid != 0 {
            command.uid(self.uid).gid(self.gid);
        }
        command.env("HOME", &self.home).env("USER", &self.name).env("LOGNAME", &self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_id() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1001:1002::/home/ann:/bin/sh\n";
        let ann = User { name: "ann".into(), uid: 1001, gid: 1002, home: "/home/ann".into() };
        assert_eq!(User::find(passwd, |name, _| name == "ann"), Some(ann.clone()));
        assert_eq!(User::find(passwd, |_, uid| uid == 1001), Some(ann));
        assert_eq!(User::find(passwd, |name, _| name == "bob"), None);
    }
}
