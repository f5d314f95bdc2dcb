//! What the service is doing now, as a value; as one page of HTML that needs no JavaScript; as JSON.
//!
//! Everything in it is written by [`escaped`]: names of repositories, branches and upstream's error texts come from
//! outside. Who is not an operator does not learn which private repositories there are ([`Status::public`]).

use crate::quarantine::Aside;
use serde::Serialize;
use std::fmt::Write;

/// How a repository is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As the upstream was at the last refresh.
    Fresh,
    /// The upstream could not be asked lately; what is here is served.
    Stale,
    /// The first clone is not done.
    Cloning,
    /// An administrator wants no refresh.
    Paused,
    /// Damaged: set aside, and being cloned again.
    Quarantined,
    /// The upstream is not for us any more: not served.
    Gone,
}

impl State {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Cloning => "cloning",
            Self::Paused => "paused",
            Self::Quarantined => "quarantined",
            Self::Gone => "gone",
        }
    }
}

/// One repository.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repository {
    /// `host/owner/name`.
    pub name: String,
    /// Its upstream, without user and password.
    pub upstream: String,
    /// Only for sessions that it was granted to.
    pub private: bool,
    /// How it is.
    pub state: State,
    /// Seconds since the refs were those of the upstream.
    pub age: Option<u64>,
    /// Seconds until the next refresh.
    pub next: Option<u64>,
    /// What the last refresh failed with.
    pub error: Option<String>,
    /// The branch that HEAD names.
    pub head: Option<String>,
    /// Branches and tags.
    pub refs: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes on disk, without scratch refs.
    pub bytes: u64,
    /// Requests since the start.
    pub requests: u64,
    /// Bytes that clients got of it.
    pub sent: u64,
    /// Packs that the cache had, since the start.
    pub hits: u64,
    /// Packs that had to be made for it.
    pub misses: u64,
    /// Scratch refs.
    pub scratch_refs: u64,
    /// Bytes of scratch refs.
    pub scratch_bytes: u64,
}

/// The pack cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cache {
    /// Packs that were there or on their way.
    pub hits: u64,
    /// Packs that had to be made.
    pub misses: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// Seconds since it serves.
    pub uptime: u64,
    /// Seconds since 1970.
    pub now: u64,
    /// Requests being served.
    pub inflight: u64,
    /// Requests that wait for their turn.
    pub waiting: u64,
    /// Processes of git.
    pub children: u64,
    /// Bytes free where the repositories are.
    pub free: u64,
    /// Whether that is less than the reserve: no scratch pushes and no new packs in the cache.
    pub low: bool,
    /// The pack cache.
    pub cache: Cache,
    /// All repositories, by name.
    pub repos: Vec<Repository>,
    /// What was set aside as corrupt, the oldest first.
    pub quarantine: Vec<Aside>,
    /// Private repositories that were left out.
    pub hidden: u64,
}

impl Status {
    /// What anybody may know: private repositories are counted, not named.
    #[must_use]
    pub fn public(mut self) -> Self {
        let all = self.repos.len();
        self.repos.retain(|repo| !repo.private);
        self.hidden += (all - self.repos.len()) as u64;
        // What is not registered any more may have been private.
        let repos = &self.repos;
        let known =
            |aside: &Aside| aside.repo.as_ref().is_some_and(|name| repos.iter().any(|r| r.name == name.as_str()));
        self.quarantine.retain(known);
        self
    }

    /// The page.
    pub fn html(&self) -> String {
        let mut page = String::from(HEAD);
        // Writing to a string does not fail.
        let _ = self.write(&mut page);
        page
    }

    fn write(&self, page: &mut String) -> std::fmt::Result {
        write!(page, "<p>Version {}, serving since {}. ", escaped(&self.version), span(self.uptime))?;
        write!(page, "{} in flight, {} waiting, {} processes of git. ", self.inflight, self.waiting, self.children)?;
        writeln!(page, "Free on disk: {}.</p>", size(self.free))?;
        if self.low {
            page.push_str("<p class=bad>The disk is nearly full: no scratch pushes, nothing new in the cache.</p>\n");
        }
        let Cache { hits, misses, bytes, .. } = self.cache;
        writeln!(page, "<p>Pack cache: {}, {}.</p>", rate(hits, misses), size(bytes))?;
        page.push_str(TABLE);
        for repo in &self.repos {
            repo.write(page)?;
        }
        page.push_str("</tbody></table>\n");
        if self.repos.is_empty() {
            page.push_str("<p>No repository is registered: <code>git sandbox mirror add URL</code>.</p>\n");
        }
        if self.hidden > 0 {
            writeln!(page, "<p>And {} private.</p>", self.hidden)?;
        }
        if !self.quarantine.is_empty() {
            page.push_str("<h2>Set aside as damaged</h2>\n<ul>\n");
            for aside in &self.quarantine {
                let name = aside.repo.as_ref().map_or(aside.dir.as_str(), |name| name.as_str());
                write!(
                    page,
                    "<li>{}, {} ago, {}",
                    escaped(name),
                    span(self.now.saturating_sub(aside.since)),
                    size(aside.bytes)
                )?;
                match aside.scratch {
                    0 => writeln!(page, "</li>")?,
                    n => writeln!(page, ", {n} scratch refs</li>")?,
                }
            }
            page.push_str("</ul><p><code>git sandbox mirror quarantine empty</code> removes them.</p>\n");
        }
        page.push_str("</body></html>\n");
        Ok(())
    }
}

impl Repository {
    fn write(&self, page: &mut String) -> std::fmt::Result {
        let class = match self.state {
            State::Fresh | State::Paused => "good",
            State::Cloning => "wait",
            State::Stale | State::Quarantined | State::Gone => "bad",
        };
        write!(page, "<tr><td>{}<br><small>{}", escaped(&self.name), escaped(&self.upstream))?;
        if let Some(head) = &self.head {
            write!(page, " ({})", escaped(head))?;
        }
        write!(page, "</small></td><td class={class}>{}", self.state.word())?;
        if let Some(error) = &self.error {
            write!(page, "<br><small>{}</small>", escaped(error))?;
        }
        let age = self.age.map_or_else(|| "–".to_owned(), span);
        let next = self.next.map_or_else(|| "–".to_owned(), span);
        write!(page, "</td><td>{age}</td><td>{next}</td><td>{}</td><td>{}</td>", self.refs, self.packs)?;
        write!(
            page,
            "<td>{}</td><td>{}</td><td>{}</td>",
            size(self.bytes),
            self.requests,
            rate(self.hits, self.misses)
        )?;
        writeln!(page, "<td>{}</td><td>{}, {}</td></tr>", size(self.sent), self.scratch_refs, size(self.scratch_bytes))
    }
}

const HEAD: &str = "<!doctype html>
<html lang=en><head><meta charset=utf-8><meta http-equiv=refresh content=10>
<meta name=viewport content=\"width=device-width, initial-scale=1\"><title>git mirror</title><style>
body{font:15px/1.4 system-ui,sans-serif;margin:2em;color-scheme:light dark}
table{border-collapse:collapse}td,th{text-align:left;padding:.3em .8em;border-bottom:1px solid #8884;vertical-align:top}
.good{color:#2a7d2e}.bad{color:#c62828}.wait{color:#b26a00}
</style></head><body><h1>git mirror</h1>
";

const TABLE: &str = "<table><thead><tr><th>repository</th><th>state</th><th>age</th><th>next</th><th>refs</th>\
<th>packs</th><th>size</th><th>requests</th><th>from the cache</th><th>sent</th><th>scratch</th></tr></thead><tbody>
";

/// Makes text safe between tags and in quotes; what is not printable is shown as `\\u{…}`.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in sandbox_git::printable(text.as_bytes()).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(c),
        }
    }
    safe
}

fn rate(hits: u64, misses: u64) -> String {
    match hits + misses {
        0 => "–".to_owned(),
        all => format!("{} % of {all}", hits * 100 / all),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match mib {
        ..0.1 => format!("{} KiB", bytes.div_ceil(1024)),
        ..1024.0 => format!("{mib:.1} MiB"),
        _ => format!("{:.1} GiB", mib / 1024.0),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn repo(name: &str, state: State) -> Repository {
        Repository {
            name: name.to_owned(),
            upstream: format!("https://{name}"),
            private: false,
            state,
            age: Some(12),
            next: Some(18),
            error: None,
            head: Some("main".to_owned()),
            refs: 5,
            packs: 3,
            bytes: 5 << 20,
            requests: 100,
            sent: 7 << 20,
            hits: 30,
            misses: 10,
            scratch_refs: 2,
            scratch_bytes: 2048,
        }
    }

    pub(crate) fn status() -> Status {
        Status {
            version: "1.2.3".to_owned(),
            uptime: 7300,
            now: 1_000_000,
            inflight: 4,
            waiting: 1,
            children: 2,
            free: 10 << 30,
            low: false,
            cache: Cache { hits: 90, misses: 10, bytes: 3 << 30 },
            repos: vec![
                repo("example.com/o/fresh", State::Fresh),
                Repository {
                    error: Some("fatal: <script>alert(1)</script> \u{1b}[31m".to_owned()),
                    head: Some("\"><img src=x>".to_owned()),
                    ..repo("example.com/o/stale", State::Stale)
                },
                Repository { private: true, ..repo("example.com/o/secret", State::Fresh) },
            ],
            quarantine: ["fresh", "secret"].map(aside).to_vec(),
            hidden: 0,
        }
    }

    fn aside(name: &str) -> Aside {
        let repo = format!("example.com/o/{name}").parse().ok();
        Aside { dir: format!("{name}-1.git"), repo, since: 1_000_000 - 7200, bytes: 2048, scratch: 1 }
    }

    #[test]
    fn each_repository_is_a_row_with_freshness_size_and_hit_rate() {
        let page = status().html();
        assert!(page.contains("serving since 2 h") && page.contains("Pack cache: 90 % of 100"), "{page}");
        for cell in [
            "<td class=good>fresh</td><td>12 s</td><td>18 s</td>",
            "5.0 MiB",
            "<td>100</td><td>75 % of 40</td><td>7.0 MiB</td>",
            "<li>example.com/o/fresh, 2 h ago, 2 KiB, 1 scratch refs</li>",
            "2, 2 KiB",
        ] {
            assert!(page.contains(cell), "no {cell} in {page}");
        }
    }

    #[test]
    fn nothing_from_outside_is_markup() {
        let page = status().html();
        assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\u{1b}'), "{page}");
        assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
        assert!(page.contains("(&quot;&gt;&lt;img src=x&gt;)"), "{page}");
    }

    #[test]
    fn private_repositories_are_counted_and_not_named() {
        let status = status().public();
        assert_eq!((status.repos.len(), status.hidden), (2, 1));
        let page = status.html();
        assert!(!page.contains("secret") && page.contains("And 1 private."), "{page}");
        assert!(!serde_json::to_string(&status).unwrap().contains("secret"));
    }

    #[test]
    fn an_empty_registry_says_what_to_do() {
        let page = Status { repos: Vec::new(), low: true, ..status() }.html();
        assert!(page.contains("git sandbox mirror add URL") && page.contains("nearly full"), "{page}");
    }
}
