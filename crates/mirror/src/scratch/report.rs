//! What a pusher is told: git's report, with a line for each ref that was refused here.

use super::commands::{Commands, Plan};
use crate::pktline::{self, Packet};
use bytes::Bytes;
use sandbox_git::{ObjectFormat, Oid};

/// Bytes of a report of git that are kept to be changed: a line for each ref, and progress.
pub const REPORT: usize = 16 << 20;
/// Bytes of one packet of a side band.
const BAND: usize = pktline::LONGEST - 5;

/// The report on a push; `git` is what git said to what it was given, `None` if it was given nothing.
pub fn report(commands: &Commands, plan: &Plan, git: Option<&[u8]>) -> Bytes {
    let wanted = commands.can("report-status") || commands.can("report-status-v2");
    if !wanted || plan.refused.iter().all(Option::is_none) {
        return Bytes::copy_from_slice(git.unwrap_or_default());
    }
    let banded = commands.can("side-band-64k");
    let (mut out, mut lines) = (Vec::new(), Vec::new());
    match git {
        Some(bytes) if banded => {
            let report = unband(bytes, &mut out);
            lines = status_lines(&report);
        }
        Some(bytes) => lines = status_lines(bytes),
        None => pktline::write(&mut lines, b"unpack ok\n"),
    }
    for (command, refused) in commands.list.iter().zip(&plan.refused) {
        if let Some(reason) = refused {
            let mut line = b"ng ".to_vec();
            line.extend_from_slice(&command.name);
            line.extend_from_slice(format!(" {reason}\n").as_bytes());
            line.truncate(pktline::LONGEST - 4);
            pktline::write(&mut lines, &line);
        }
    }
    pktline::flush(&mut lines);
    if !banded {
        return lines.into();
    }
    for part in lines.chunks(BAND) {
        let mut packet = vec![1];
        packet.extend_from_slice(part);
        pktline::write(&mut out, &packet);
    }
    pktline::flush(&mut out);
    out.into()
}

/// Takes the first band out; the others go to `others` as they are.
fn unband(mut bytes: &[u8], others: &mut Vec<u8>) -> Vec<u8> {
    let mut first = Vec::new();
    while let Ok(Some((packet, length))) = pktline::read(bytes) {
        match packet {
            Packet::Data([1, data @ ..]) => first.extend_from_slice(data),
            Packet::Data(data) if !data.is_empty() => pktline::write(others, data),
            _ => {}
        }
        bytes = &bytes[length..];
    }
    first
}

/// The packets of a report up to its flush.
fn status_lines(mut bytes: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    while let Ok(Some((Packet::Data(data), length))) = pktline::read(bytes) {
        pktline::write(&mut lines, data);
        bytes = &bytes[length..];
    }
    lines
}

/// What a push is told first where nothing may be written: no refs.
pub fn nothing(format: ObjectFormat) -> Bytes {
    let zero = Oid::null(format);
    let line = format!(
        "{zero} capabilities^{{}}\0report-status report-status-v2 delete-refs side-band-64k quiet atomic ofs-delta \
         object-format={format} agent=git-sandbox-mirror\n"
    );
    let mut out = Vec::new();
    pktline::write(&mut out, line.as_bytes());
    pktline::flush(&mut out);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::super::commands::Command;
    use super::*;

    fn asked(capabilities: &str) -> (Commands, Plan) {
        let (zero, one) = (Oid::null(ObjectFormat::Sha1), Oid::parse("1".repeat(40)).unwrap());
        let mut commands = Commands::default();
        commands.add(format!("{zero} {one} refs/heads/main\0{capabilities}").as_bytes()).unwrap();
        commands.list.push(Command { old: zero, new: one, name: b"refs/agents/s1".to_vec() });
        let plan = Plan::new(Some(&"s1".parse().unwrap()), &commands);
        (commands, plan)
    }

    fn shown(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).replace('\u{1}', "<1>").replace('\u{2}', "<2>").replace('\n', "|")
    }

    const NG: &str = "0040ng refs/heads/main read-only mirror: push to refs/agents/s1|";

    #[test]
    fn refusals_are_lines_of_gits_report() {
        let (commands, plan) = asked("report-status side-band-64k");
        let mut inner = Vec::new();
        pktline::write(&mut inner, b"unpack ok\n");
        pktline::write(&mut inner, b"ok refs/agents/s1\n");
        pktline::flush(&mut inner);
        let mut git = Vec::new();
        pktline::write(&mut git, b"\x02remote text");
        pktline::write(&mut git, &[&[1], &inner[..]].concat());
        pktline::flush(&mut git);
        assert_eq!(
            shown(&report(&commands, &plan, Some(&git))),
            format!("0010<2>remote text006d<1>000eunpack ok|0016ok refs/agents/s1|{NG}00000000")
        );
        let (commands, plan) = asked("report-status");
        assert_eq!(
            shown(&report(&commands, &plan, Some(&inner))),
            format!("000eunpack ok|0016ok refs/agents/s1|{NG}0000")
        );
        assert_eq!(shown(&report(&commands, &plan, None)), format!("000eunpack ok|{NG}0000"));
    }

    #[test]
    fn who_wants_no_report_gets_none() {
        let (commands, plan) = asked("quiet");
        assert!(report(&commands, &plan, None).is_empty());
    }

    #[test]
    fn an_empty_advertisement_names_the_hash() {
        let text = String::from_utf8(nothing(ObjectFormat::Sha256).to_vec()).unwrap();
        assert!(text.contains(&"0".repeat(64)) && text.contains("object-format=sha256") && text.ends_with("0000"));
    }
}
