//! What a push asks for, read before its pack is; and which of that is allowed.
//!
//! ```text
//! [shallow <oid>]* (<old> <new> <ref>[\0capabilities])* flush  [option]* flush?  PACK…
//! ```
//! (gitprotocol-pack(5), "Reference Update Request and Packfile Transfer")

use crate::identity::SessionId;
use crate::pktline::{self, Packet};
use crate::serve::relay::{Source, SourceError};
use sandbox_git::{Oid, RefName};

/// Bytes of commands that are taken.
const MOST: usize = 8 << 20;
/// Push options that are taken.
const OPTIONS: usize = 64;
/// What sessions may write begins so.
pub const PREFIX: &str = "refs/agents/";

/// One update of a ref.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What the ref must be now.
    pub old: Oid,
    /// What it shall be.
    pub new: Oid,
    /// Its name, as the client wrote it.
    pub name: Vec<u8>,
}

/// All that precedes the pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// The updates.
    pub list: Vec<Command>,
    /// Where the client's history ends.
    pub shallow: Vec<Oid>,
    capabilities: Vec<u8>,
    options: Vec<Vec<u8>>,
}

impl Commands {
    /// Reads up to where the pack begins.
    pub async fn read(source: &mut Source) -> Result<Self, SourceError> {
        let mut commands = Self::default();
        while let Some(line) = line(source).await? {
            commands.add(&line)?;
        }
        if commands.can("push-options") {
            while let Some(option) = line(source).await? {
                if commands.options.len() == OPTIONS {
                    return Err(SourceError::Malformed);
                }
                commands.options.push(option);
            }
        }
        Ok(commands)
    }

    /// Reads one line.
    pub(super) fn add(&mut self, line: &[u8]) -> Result<(), SourceError> {
        if let Some(id) = line.strip_prefix(b"shallow ") {
            self.shallow.push(Oid::parse(id.trim_ascii_end()).ok_or(SourceError::Malformed)?);
            return Ok(());
        }
        let (update, capabilities) = match line.iter().position(|byte| *byte == 0) {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        if let (Some(capabilities), true) = (capabilities, self.list.is_empty()) {
            self.capabilities = capabilities.trim_ascii_end().to_vec();
        }
        let update = update.strip_suffix(b"\n").unwrap_or(update);
        let mut words = update.splitn(3, |byte| *byte == b' ');
        let mut id = || words.next().and_then(Oid::parse);
        let (Some(old), Some(new)) = (id(), id()) else { return Err(SourceError::Malformed) };
        let name = words.next().ok_or(SourceError::Malformed)?.to_vec();
        if old.format() != new.format() || name.is_empty() {
            return Err(SourceError::Malformed);
        }
        self.list.push(Command { old, new, name });
        Ok(())
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether only refs go away: then there is no pack.
    pub fn only_deletes(&self) -> bool {
        self.list.iter().all(|command| command.new.is_null())
    }

    /// Whether the client can do something.
    pub fn can(&self, what: &str) -> bool {
        self.capabilities.split(|byte| *byte == b' ').any(|word| word == what.as_bytes())
    }

    /// What git is given: the accepted updates, as if the others had not been asked for.
    pub fn accepted(&self, plan: &Plan) -> Vec<u8> {
        let mut bytes = Vec::new();
        for id in &self.shallow {
            pktline::write(&mut bytes, format!("shallow {id}").as_bytes());
        }
        let mut first = true;
        for (command, refused) in self.list.iter().zip(&plan.refused) {
            if refused.is_some() {
                continue;
            }
            let mut line = format!("{} {} ", command.old, command.new).into_bytes();
            line.extend_from_slice(&command.name);
            if std::mem::take(&mut first) {
                line.push(0);
                line.extend_from_slice(&self.capabilities);
            }
            pktline::write(&mut bytes, &line);
        }
        pktline::flush(&mut bytes);
        if self.can("push-options") {
            self.options.iter().for_each(|option| pktline::write(&mut bytes, option));
            pktline::flush(&mut bytes);
        }
        bytes
    }
}

/// The next line; `None` at a flush, or when nothing came at all.
async fn line(source: &mut Source) -> Result<Option<Vec<u8>>, SourceError> {
    let whole = |bytes: &[u8]| !matches!(pktline::read(bytes), Ok(None));
    let received = source.received;
    let bytes = source.peek(whole).await?;
    let (line, length) = match pktline::read(bytes) {
        Ok(Some((Packet::Flush, length))) => (None, length),
        Ok(Some((Packet::Data(data), length))) => (Some(data.to_vec()), length),
        Ok(None) if bytes.is_empty() && received == 0 => return Ok(None),
        _ => return Err(SourceError::Malformed),
    };
    source.consume(length);
    if source.received > (MOST + pktline::LONGEST) as u64 {
        return Err(SourceError::TooLarge { limit: MOST as u64 });
    }
    Ok(line)
}

/// Which updates are refused, and why: one for each, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The reason; `None` for what is accepted.
    pub refused: Vec<Option<String>>,
}

impl Plan {
    /// Decides (X3): a session may write its own ref and what is below it, and nothing else.
    pub fn new(session: Option<&SessionId>, commands: &Commands) -> Self {
        let own = session.map(|id| format!("{PREFIX}{id}"));
        let refused = commands.list.iter().map(|command| {
            let Some(own) = &own else {
                return Some("read-only mirror: only a session can push".to_owned());
            };
            let rest = command.name.strip_prefix(own.as_bytes());
            let fine = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
                && RefName::parse(&command.name).is_some();
            (!fine).then(|| format!("read-only mirror: push to {own}"))
        });
        let mut plan = Self { refused: refused.collect() };
        plan.keep_whole(commands);
        plan
    }

    /// Refuses all that is accepted so far and brings something, for one reason.
    pub fn refuse_writes(&mut self, commands: &Commands, reason: &str) {
        for (command, refused) in commands.list.iter().zip(&mut self.refused) {
            if refused.is_none() && !command.new.is_null() {
                *refused = Some(reason.to_owned());
            }
        }
        self.keep_whole(commands);
    }

    /// All or nothing, if that was asked for.
    fn keep_whole(&mut self, commands: &Commands) {
        if commands.can("atomic") && self.refused.iter().any(Option::is_some) {
            for refused in self.refused.iter_mut().filter(|refused| refused.is_none()) {
                *refused = Some("atomic push: another ref was refused".to_owned());
            }
        }
    }

    /// Whether anything is left to be done.
    pub fn any_accepted(&self) -> bool {
        self.refused.iter().any(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(lines: &[&str], capabilities: &str) -> Commands {
        let mut commands = Commands::default();
        let (zero, one) = ("0".repeat(40), "1".repeat(40));
        for (n, name) in lines.iter().enumerate() {
            let end = if n == 0 { format!("\0{capabilities}\n") } else { "\n".to_owned() };
            let line = match name.strip_prefix("-") {
                Some(name) => format!("{one} {zero} {name}{end}"),
                None => format!("{zero} {one} {name}{end}"),
            };
            commands.add(line.as_bytes()).unwrap();
        }
        commands
    }

    fn decided(session: Option<&str>, lines: &[&str], capabilities: &str) -> Vec<String> {
        let session = session.map(|id| id.parse().unwrap());
        let plan = Plan::new(session.as_ref(), &commands(lines, capabilities));
        plan.refused.into_iter().map(|refused| refused.unwrap_or_else(|| "ok".to_owned())).collect()
    }

    #[test]
    fn a_session_writes_its_own_ref_and_below_it_and_nothing_else() {
        let own = ["refs/agents/s1", "refs/agents/s1/wip", "-refs/agents/s1/a/b"];
        assert_eq!(decided(Some("s1"), &own, ""), ["ok", "ok", "ok"]);
        for other in [
            "refs/heads/main",
            "-refs/heads/main",
            "refs/tags/v1",
            "refs/replace/x",
            "refs/keep/x",
            "refs/base/x",
            "refs/agents/s10",
            "refs/agents/s",
            "refs/agents/s2/x",
            "refs/agents/S1",
            "refs/agents/s1/../s2",
            "refs/agents/s1/",
            "refs/agents/s1/x.lock",
            "refs/agents/s1\nx",
            "refs/agents",
            "HEAD",
            "agents/s1",
        ] {
            let said = decided(Some("s1"), &[other], "");
            assert_eq!(said, ["read-only mirror: push to refs/agents/s1"], "{other:?}");
        }
        assert_eq!(decided(None, &["refs/agents/s1"], ""), ["read-only mirror: only a session can push"]);
    }

    #[test]
    fn the_rest_of_a_push_applies_unless_it_is_atomic() {
        let refs = ["refs/heads/main", "refs/agents/s1"];
        assert_eq!(decided(Some("s1"), &refs, "report-status"), ["read-only mirror: push to refs/agents/s1", "ok"]);
        let atomic = decided(Some("s1"), &refs, "report-status atomic");
        assert_eq!(atomic[1], "atomic push: another ref was refused");
    }

    #[test]
    fn what_git_is_given_has_only_what_was_accepted() {
        let mut asked = commands(&["refs/heads/main", "refs/agents/s1"], "report-status push-options");
        asked.options.push(b"ci.skip".to_vec());
        asked.shallow.push(Oid::parse("2".repeat(40)).unwrap());
        let plan = Plan::new(Some(&"s1".parse().unwrap()), &asked);
        let bytes = asked.accepted(&plan);
        let text = String::from_utf8(bytes).unwrap();
        let (zero, one, two) = ("0".repeat(40), "1".repeat(40), "2".repeat(40));
        assert_eq!(
            text,
            format!("0034shallow {two}007f{zero} {one} refs/agents/s1\0report-status push-options0000000bci.skip0000")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let one = "1".repeat(40);
        for wrong in [
            "x".to_owned(),
            format!("{one} {one}"),
            format!("{one} {one} "),
            format!("{one} {} refs/x", "1".repeat(64)),
            "shallow x".to_owned(),
            "push-cert\0x".to_owned(),
            format!("{one}\t{one} refs/x"),
        ] {
            assert!(Commands::default().add(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
