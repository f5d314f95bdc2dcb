//! What `/metrics` tells: counters of this process, and the state of each repository at the moment it is asked.
//!
//! Labels are bounded: words of this module, and names of registered repositories. What a client says (a path, a
//! ref, a session) is never a label. Written in the text format of OpenMetrics 1.0, which Prometheus reads.

use crate::event::{CacheEvent, Event, GitService, Observer, Outcome, Served, Shape};
use crate::name::RepoName;
use crate::status_page::Status;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The media type of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Repo = [(&'static str, String); 1];
type Seconds<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// A millisecond to a good ten minutes.
fn seconds() -> Histogram {
    Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0])
}

/// How much one repository was used since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Requests that have ended.
    pub requests: u64,
    /// Bytes that clients got.
    pub sent: u64,
    /// Packs that the cache had.
    pub hits: u64,
    /// Packs that it had not.
    pub misses: u64,
}

/// The numbers of one process. Cheap to update from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<4>, Counter>,
    request_seconds: Seconds<2>,
    queue_seconds: Histogram,
    bytes: Family<Labels<1>, Counter>,
    refresh: Family<Labels<2>, Counter>,
    refresh_seconds: Seconds<1>,
    maintenance_seconds: Seconds<1>,
    fallback: Family<Labels<1>, Counter>,
    scratch_pushes: Family<Labels<1>, Counter>,
    cache_hits: Counter,
    cache_misses: Counter,
    cache_fills: Counter,
    cache_evicted: Counter,
    cache_failures: Counter,
    troubles: Counter,
    /// By repository, which the registry bounds.
    scratch_expired: Counter,
    used: Mutex<HashMap<RepoName, Used>>,
    /// What is set when somebody asks.
    now: Mutex<Now>,
}

/// Gauges and counters whose value others keep.
#[derive(Debug, Default)]
struct Now {
    inflight: Gauge,
    waiting: Gauge,
    children: Gauge,
    cache_bytes: Gauge,
    repos: Family<Labels<1>, Gauge>,
    age: Family<Repo, Gauge>,
    packs: Family<Repo, Gauge>,
    bytes: Family<Repo, Gauge>,
    scratch: Family<Repo, Gauge>,
    hits: Family<Repo, Counter>,
    misses: Family<Repo, Counter>,
    quarantined: Gauge,
    quarantine_bytes: Gauge,
}

impl Metrics {
    /// Makes them, all zero.
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::default();
        let family = || Family::new_with_constructor(seconds as fn() -> Histogram);
        let metrics = Self {
            requests: Family::default(),
            request_seconds: family(),
            queue_seconds: seconds(),
            bytes: Family::default(),
            refresh: Family::default(),
            refresh_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            maintenance_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            fallback: Family::default(),
            scratch_pushes: Family::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            cache_fills: Counter::default(),
            cache_evicted: Counter::default(),
            cache_failures: Counter::default(),
            troubles: Counter::default(),
            scratch_expired: Counter::default(),
            used: Mutex::default(),
            now: Mutex::default(),
            registry: Registry::default(),
        };
        let now = Now::default();
        let r = &mut registry;
        r.register("build", "This program", Info::new([("version", version.to_owned())]));
        r.register("mirror_requests", "Requests that have ended", metrics.requests.clone());
        r.register("mirror_request_seconds", "From head to last byte", metrics.request_seconds.clone());
        r.register("mirror_queue_seconds", "Time that requests waited for their turn", metrics.queue_seconds.clone());
        r.register("mirror_bytes", "Bytes of bodies", metrics.bytes.clone());
        r.register("mirror_refresh", "Refreshes that have ended", metrics.refresh.clone());
        r.register("mirror_refresh_seconds", "How long a refresh took", metrics.refresh_seconds.clone());
        r.register("mirror_maintenance_seconds", "How long maintenance took", metrics.maintenance_seconds.clone());
        r.register("mirror_fallback", "Clients that were sent to the upstream", metrics.fallback.clone());
        r.register("scratch_pushes", "Refs of pushes to scratch refs", metrics.scratch_pushes.clone());
        r.register("scratch_expired", "Sessions whose scratch refs went by age", metrics.scratch_expired.clone());
        r.register("mirror_inflight", "Requests being served", now.inflight.clone());
        r.register("mirror_waiting", "Requests that wait for their turn", now.waiting.clone());
        r.register("child_processes", "Processes of git that run", now.children.clone());
        r.register("mirror_packcache_bytes", "Size of the pack cache", now.cache_bytes.clone());
        r.register("mirror_packcache_hits", "Packs that were there or on their way", metrics.cache_hits.clone());
        r.register("mirror_packcache_misses", "Packs that had to be made", metrics.cache_misses.clone());
        r.register("mirror_packcache_fills", "Packs that were kept", metrics.cache_fills.clone());
        r.register("mirror_packcache_evicted_bytes", "Bytes of packs that went", metrics.cache_evicted.clone());
        r.register("mirror_packcache_failures", "Times that it was of no use", metrics.cache_failures.clone());
        r.register("mirror_troubles", "Things that could not be done", metrics.troubles.clone());
        r.register("mirror_repositories", "Repositories, by state", now.repos.clone());
        r.register("mirror_ref_age_seconds", "Since the refs were those of the upstream", now.age.clone());
        r.register("mirror_packs", "Packs of a repository", now.packs.clone());
        r.register("mirror_repository_bytes", "Size of a repository on disk", now.bytes.clone());
        r.register("scratch_bytes", "Size of the scratch refs of a repository", now.scratch.clone());
        r.register("mirror_repository_packcache_hits", "Of these, of a repository", now.hits.clone());
        r.register("mirror_repository_packcache_misses", "Of these, of a repository", now.misses.clone());
        r.register("mirror_quarantined", "Mirrors that were set aside", now.quarantined.clone());
        r.register("mirror_quarantine_bytes", "Size of what was set aside", now.quarantine_bytes.clone());
        Self { registry, now: Mutex::new(now), ..metrics }
    }

    fn served(&self, served: &Served) {
        let (service, shape) = (service(served.service), shape(served.shape));
        let proto = match (served.service, served.protocol) {
            (None, _) => "none",
            (_, 0) => "v0",
            (_, 1) => "v1",
            _ => "v2",
        };
        let labels = [("service", service), ("proto", proto), ("shape", shape), ("outcome", outcome(served.outcome))];
        self.requests.get_or_create(&labels).inc();
        let labels = [("service", service), ("shape", shape)];
        self.request_seconds.get_or_create(&labels).observe(served.took.as_secs_f64());
        self.queue_seconds.observe(served.queued.as_secs_f64());
        self.bytes.get_or_create(&[("direction", "received")]).inc_by(served.received);
        self.bytes.get_or_create(&[("direction", "sent")]).inc_by(served.sent);
        if let Some(repo) = &served.repo {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let used = used.entry(repo.clone()).or_default();
            used.requests += 1;
            used.sent += served.sent;
        }
        if served.outcome == Outcome::Redirected {
            let reason = if served.repo.is_some() { "cold" } else { "unregistered" };
            self.fallback.get_or_create(&[("reason", reason)]).inc();
        }
        if served.shape == Shape::Push {
            self.scratch_pushes.get_or_create(&[("outcome", outcome(served.outcome))]).inc();
        }
    }

    fn cache(&self, repo: Option<&RepoName>, event: &CacheEvent) {
        if let Some(repo) = repo {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let used = used.entry(repo.clone()).or_default();
            match event {
                CacheEvent::Hit | CacheEvent::Followed => used.hits += 1,
                CacheEvent::Filled { .. } | CacheEvent::Passed => used.misses += 1,
                CacheEvent::Evicted { .. } | CacheEvent::Failed => {}
            }
        }
        match event {
            CacheEvent::Hit | CacheEvent::Followed => self.cache_hits.inc(),
            CacheEvent::Filled { .. } => {
                self.cache_misses.inc();
                self.cache_fills.inc()
            }
            CacheEvent::Passed => self.cache_misses.inc(),
            CacheEvent::Evicted { bytes } => self.cache_evicted.inc_by(*bytes),
            CacheEvent::Failed => self.cache_failures.inc(),
        };
    }

    /// How much each repository was used.
    pub fn by_repository(&self) -> HashMap<RepoName, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Packs that the cache had, and that it had not, since the start.
    pub fn cache_use(&self) -> (u64, u64) {
        (self.cache_hits.get(), self.cache_misses.get())
    }

    /// Writes all, with the state of now. Names of repositories that `status` leaves out are left out here.
    pub fn render(&self, status: &Status) -> String {
        // One scrape at a time: what is set here is read below.
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.set(status);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Now {
    fn set(&self, status: &Status) {
        self.inflight.set(whole(status.inflight));
        self.waiting.set(whole(status.waiting));
        self.children.set(whole(status.children));
        self.cache_bytes.set(whole(status.cache.bytes));
        for family in [&self.age, &self.packs, &self.bytes, &self.scratch] {
            family.clear();
        }
        self.hits.clear();
        self.misses.clear();
        self.quarantined.set(whole(status.quarantine.len() as u64));
        self.quarantine_bytes.set(whole(status.quarantine.iter().map(|aside| aside.bytes).sum()));
        self.repos.clear();
        for repo in &status.repos {
            self.repos.get_or_create(&[("state", repo.state.word())]).inc();
            let set = |family: &Family<Repo, Gauge>, value: u64| {
                family.get_or_create(&[("repo", repo.name.clone())]).set(whole(value));
            };
            if let Some(age) = repo.age {
                set(&self.age, age);
            }
            set(&self.packs, repo.packs);
            set(&self.bytes, repo.bytes);
            set(&self.scratch, repo.scratch_bytes);
            for (family, value) in [(&self.hits, repo.hits), (&self.misses, repo.misses)] {
                family.get_or_create(&[("repo", repo.name.clone())]).inc_by(value);
            }
        }
    }
}

impl Observer for Metrics {
    fn observe(&self, event: &Event) {
        match event {
            Event::Served(served) => self.served(served),
            Event::Cache { repo, what } => self.cache(repo.as_ref(), what),
            Event::Emptied(_) => {}
            Event::Expired { .. } => {
                self.scratch_expired.inc();
            }
            Event::Trouble { .. } => {
                self.troubles.inc();
            }
            Event::Refreshed(refreshed) => {
                let labels = [("outcome", refreshed.outcome), ("trigger", refreshed.trigger.word())];
                self.refresh.get_or_create(&labels).inc();
                let labels = [("outcome", refreshed.outcome)];
                self.refresh_seconds.get_or_create(&labels).observe(refreshed.took.as_secs_f64());
            }
            Event::Maintained(maintained) => {
                let labels = [("task", maintained.task.word())];
                self.maintenance_seconds.get_or_create(&labels).observe(maintained.took.as_secs_f64());
            }
        }
    }
}

/// The word of a service in metrics and logs.
pub(crate) fn service(service: Option<GitService>) -> &'static str {
    match service {
        Some(GitService::UploadPack) => "fetch",
        Some(GitService::ReceivePack) => "push",
        None => "other",
    }
}

/// The word of a shape in metrics and logs.
pub(crate) fn shape(shape: Shape) -> &'static str {
    match shape {
        Shape::Refs => "refs",
        Shape::Full => "full",
        Shape::Shallow => "shallow",
        Shape::Blobless => "blobless",
        Shape::ShallowBlobless => "shallow-blobless",
        Shape::Incremental => "incremental",
        Shape::Push => "push",
        Shape::Other => "other",
    }
}

/// The word of an outcome in metrics and logs.
pub(crate) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "ok",
        Outcome::Unknown => "not-found",
        Outcome::Gone => "gone",
        Outcome::Redirected => "redirected",
        Outcome::Refused => "refused",
        Outcome::Busy => "overload",
        Outcome::Disconnected => "disconnected",
        Outcome::Malformed => "malformed",
        Outcome::Failed => "failed",
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::event::Transport;
    use crate::status_page::tests::status;
    use std::time::Duration;

    pub(crate) fn served() -> Served {
        Served {
            transport: Transport::Http,
            service: Some(GitService::UploadPack),
            protocol: 2,
            shape: Shape::Shallow,
            repo: Some("example.com/o/fresh".parse().unwrap()),
            session: None,
            outcome: Outcome::Done,
            queued: Duration::ZERO,
            took: Duration::from_millis(20),
            received: 100,
            sent: 5000,
            said: String::new(),
        }
    }

    #[test]
    fn what_happened_is_counted_and_what_is_is_told() {
        let metrics = Metrics::new("1.2.3");
        let count = |served: Served| metrics.observe(&Event::Served(served));
        count(served());
        count(served());
        count(Served { outcome: Outcome::Disconnected, ..served() });
        count(Served { outcome: Outcome::Redirected, repo: None, sent: 0, ..served() });
        let push = Served { service: Some(GitService::ReceivePack), shape: Shape::Push, ..served() };
        count(Served { outcome: Outcome::Refused, sent: 0, ..push });
        for event in [CacheEvent::Hit, CacheEvent::Followed, CacheEvent::Filled { bytes: 5 }] {
            metrics.observe(&Event::Cache { repo: Some("example.com/o/fresh".parse().unwrap()), what: event });
        }
        let used = metrics.by_repository()[&"example.com/o/fresh".parse().unwrap()];
        assert_eq!((used.requests, used.hits, used.misses), (4, 2, 1));
        let text = metrics.render(&status());
        for line in [
            "build_info{version=\"1.2.3\"} 1",
            "mirror_requests_total{service=\"fetch\",proto=\"v2\",shape=\"shallow\",outcome=\"ok\"} 2",
            "mirror_bytes_total{direction=\"sent\"} 15000",
            "mirror_request_seconds_bucket{le=\"0.03\",service=\"fetch\",shape=\"shallow\"} 4",
            "scratch_pushes_total{outcome=\"refused\"} 1",
            "mirror_fallback_total{reason=\"unregistered\"} 1",
            "mirror_packcache_hits_total 2",
            "mirror_packcache_misses_total 1",
            "mirror_ref_age_seconds{repo=\"example.com/o/fresh\"} 12",
            "mirror_packs{repo=\"example.com/o/fresh\"} 3",
            "mirror_repository_packcache_hits_total{repo=\"example.com/o/fresh\"} 30",
            "mirror_quarantined 2",
            "mirror_quarantine_bytes 4096",
            "child_processes 2",
        ] {
            assert!(text.lines().any(|other| other == line), "no `{line}` in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_repository_that_is_gone_has_no_line() {
        let metrics = Metrics::new("1");
        let mut status = status();
        assert!(metrics.render(&status).contains("example.com/o/fresh"));
        status.repos.clear();
        let text = metrics.render(&status);
        assert!(!text.contains("example.com/o/fresh"), "{text}");
    }
}
