use super::*;

const WHOLE: &str = r#"
[serve]
http = ["127.0.0.1:9480", "[::1]:9480"]
git = "127.0.0.1:9418"
unix = "/run/git-sandbox/mirror.sock"
vsock = 9480
admin = "unix:/run/git-sandbox/admin.sock"
tls_cert = "/etc/c.pem"
tls_key = "/etc/k.pem"
insecure = false
max_inflight = 64
queue = 1024
queue_timeout = "30s"
idle_timeout = "30s"
request_body_max = "64MiB"
inflate_max = "256MiB"
[store]
root = "/srv/mirrors"
db = "registry.sqlite"
min_free = "5GiB"
[refresh]
interval = "30s"
jitter = 0.2
concurrency = 4
per_host = 2
timeout = "5m"
clone_timeout = "1h"
max_stale = "15m"
backoff_max = "10m"
[upstream]
allow_insecure = true
allow_private = ["10.0.0.0/8", "127.0.0.1"]
ca_file = "/etc/ca.pem"
known_hosts = "/etc/known_hosts"
[cache]
dir = "/srv/cache"
max_bytes = "4GiB"
max_age = "5m"
[maintenance]
geometric_every = "10m"
full_every = "7d"
window = "22:30-05:00"
prune_after = "14d"
quarantine = "30d"
threads = 2
memory = "1GiB"
[scratch]
enabled = true
prefix = "refs/agents/"
isolation = "repo"
max_push = "256MiB"
quota = "1GiB"
ttl = "14d"
[webhook]
secret = "file:/etc/hook"
providers = ["github", "generic"]
[[credential]]
id = "gh"
host = "GitHub.com"
source = "env:GH_TOKEN"
[[repo]]
url = "https://github.com/o/n"
name = "github.com/o/n"
credential = "gh"
interval = "1m"
refs = ["refs/heads/*", "refs/tags/v1"]
private = true
"#;

fn refused(text: &str) -> String {
    let error = Config::parse(text, false).unwrap_err();
    match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

#[test]
fn every_key_is_read() {
    let config = Config::parse(WHOLE, false).unwrap();
    assert_eq!(config.serve.http.len(), 2);
    assert_eq!(config.serve.tls.as_ref().unwrap().key, Path::new("/etc/k.pem"));
    assert_eq!(config.store.db, Path::new("/srv/mirrors/registry.sqlite"));
    assert_eq!(config.upstream.allow_private[1].to_string(), "127.0.0.1/32");
    assert_eq!(config.scratch.isolation, Isolation::Repo);
    assert_eq!(config.credential("gh").unwrap().host, "github.com");
    assert_eq!(config.repos[0].interval, Some(MINUTE));
    let window = config.maintenance.window.unwrap();
    assert!(window.contains(23 * 60) && window.contains(0) && !window.contains(300) && !window.contains(1349));
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = Config::default();
    assert_eq!(config.serve.http, ["127.0.0.1:9480".parse().unwrap()]);
    assert_eq!(config.refresh.interval, Duration::from_secs(30));
    assert_eq!(config.cache.dir, Path::new("/var/lib/git-sandbox/mirrors/packcache"));
    assert_eq!(config.webhook, None);
}

#[test]
fn what_is_not_known_is_refused_with_what_it_looks_like() {
    assert_eq!(
        refused("[refresh]\nintervall = '30s'"),
        "unknown key 'refresh.intervall'\nhint: did you mean 'refresh.interval'?"
    );
    assert_eq!(refused("[refrehs]"), "unknown key 'refrehs'\nhint: did you mean 'refresh'?");
    assert_eq!(refused("[[repo]]\nurl = 'x'\ncolour = 'blue'"), "unknown key 'repo.colour'");
    assert_eq!(refused("[store\n"), "not TOML: line 1: unclosed table, expected `]`");
}

#[test]
fn every_wrong_value_is_named() {
    for (text, said) in [
        ("serve = 1", "'serve': expected a table, not a value of the kind 'integer'"),
        ("[repo]\nurl='x'", "'repo': expected an array of tables, not a value of the kind 'table'"),
        (
            "[refresh]\ninterval = 30",
            "'refresh.interval': expected a duration like '30s', not a value of the kind 'integer'",
        ),
        (
            "[refresh]\ninterval = '30'",
            "'refresh.interval': expected a duration like '30s', '5m', '1h' or '7d', not '30'",
        ),
        ("[refresh]\ninterval = '1ms'", "'refresh.interval': '1ms' is less than the least, 1s"),
        ("[refresh]\njitter = 2", "'refresh.jitter': 2 is not between 0 and 1"),
        ("[refresh]\nconcurrency = 0", "'refresh.concurrency': 0 is not between 1 and 256"),
        ("[store]\nmin_free = 'much'", "'store.min_free': expected a size like '64MiB' or '4GiB', not 'much'"),
        ("[store]\nmin_free = -1", "'store.min_free': -1 is no size"),
        ("[store]\nroot = 'here'", "'store.root': 'here' is not an absolute path"),
        ("[serve]\nhttp = 'localhost'", "'serve.http': 'localhost' is no address and port like '127.0.0.1:9480'"),
        ("[serve]\nadmin = '127.0.0.1:1'", "'serve.admin': only a Unix socket: 'unix:/run/git-sandbox/admin.sock'"),
        ("[serve]\ntls_cert = '/c'", "'serve.tls_key' is missing"),
        ("[serve]\ntls_key = '/c'", "'serve.tls_cert' is missing"),
        ("[serve]\ninsecure = 'yes'", "'serve.insecure': expected true or false, not a value of the kind 'string'"),
        (
            "[upstream]\nallow_private = ['here']",
            "'upstream.allow_private': expected a range of addresses like '10.0.0.0/8'",
        ),
        (
            "[maintenance]\nwindow = '2-5'",
            "'maintenance.window': '2-5' is no part of a day like '02:00-05:00', nor 'always'",
        ),
        ("[maintenance]\nprune_after = '1d'", "'maintenance.prune_after': '1d' is less than the least, 1209600s"),
        ("[scratch]\nisolation = 'none'", "'scratch.isolation': 'none' is neither 'session' nor 'repo'"),
        ("[scratch]\nprefix = 'refs/heads/'", "'scratch.prefix': only 'refs/agents/' is supported"),
        ("[webhook]\nproviders = []", "'webhook.secret' is missing"),
        (
            "[webhook]\nsecret = 'env:S'\nproviders = ['svn']",
            "'webhook.providers': 'svn' is none of 'github', 'gitlab', 'gitea', 'generic'",
        ),
        (
            "[[credential]]\nid = 'a'\nhost = 'https://h/'\nsource = 'env:A'",
            "'credential.host': 'https://h/' is no host name: no scheme, no path",
        ),
        (
            "[[credential]]\nid = 'a b'\nhost = 'h'\nsource = 'env:A'",
            "'credential.id': 'a b' must be letters, digits, '-', '_' and '.'",
        ),
        (
            "[[credential]]\nid = 'a'\nhost = 'h'\nsource = 'ghp_0123456789'",
            "'credential.source': it must begin with 'env:', 'file:', 'exec:' or 'github-app:'",
        ),
        ("[[repo]]\nname = 'n'", "'repo.url' is missing"),
        ("[[repo]]\nurl = 'u'\ncredential = 'x'", "'repo.credential': there is no credential 'x'"),
        (
            "[[repo]]\nurl = 'u'\nrefs = ['refs/agents/*']",
            "'repo.refs': 'refs/agents/*' is not below 'refs/heads/' or 'refs/tags/'",
        ),
    ] {
        assert_eq!(refused(text), said, "{text}");
    }
    let twice = "[[credential]]\nid='a'\nhost='h'\nsource='env:A'\n".repeat(2);
    assert_eq!(refused(&twice), "'credential.id': 'a' is there twice");
}

#[test]
fn a_listener_off_loopback_needs_tls_or_the_word() {
    let exposed = "[serve]\nhttp = '0.0.0.0:9480'";
    assert_eq!(
        refused(exposed),
        "'serve.http' = 0.0.0.0:9480 is not on loopback and takes tokens: it needs 'serve.tls_cert' and \
         'serve.tls_key'\nhint: 'serve.insecure = true' (or `--insecure`) if the network between is trusted"
    );
    assert!(Config::parse(exposed, true).unwrap().serve.insecure);
    assert!(Config::parse(&format!("{exposed}\ninsecure = true"), false).is_ok());
    assert!(Config::parse(&format!("{exposed}\ntls_cert = '/c'\ntls_key = '/k'"), false).is_ok());
    // git:// takes no tokens.
    assert!(Config::parse("[serve]\ngit = '0.0.0.0:9418'", false).is_ok());
}

#[test]
fn a_secret_that_was_put_into_the_file_is_not_repeated() {
    let said = refused("[[credential]]\nid = 'a'\nhost = 'h'\nsource = 'ghp_secret'");
    assert!(!said.contains("ghp_secret"), "{said}");
}
