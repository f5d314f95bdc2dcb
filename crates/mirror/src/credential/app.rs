//! Tokens of a GitHub App: `github-app:/path` names a file that says which one.
//!
//! ```text
//! app = "12345"                          # the App's id, or its client id
//! installation = 678                     # where it is installed
//! key = "/etc/git-sandbox/app.pem"       # its private key, as GitHub gives it (PKCS#1 or PKCS#8)
//! api = "https://api.github.com"         # https://HOST/api/v3 of a GitHub Enterprise Server
//! ca_file = "/etc/ssl/own.pem"           # authorities in place of the system's
//!
//! key ─► JWT (RS256, ten minutes) ─► POST api/app/installations/N/access_tokens ─► token, for an hour
//! ```
//!
//! After GitHub's "Generating a JSON Web Token for a GitHub App" and "Create an installation access token for an app".
//! A redirect is not followed, and nothing of an answer but the token and its end is kept.

use super::{Secret, TOKEN_USER};
use crate::client::request;
use crate::refresh::Resolver;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SignatureScheme, StreamOwned};
use serde::Deserialize;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest that asking may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a JWT is good for: GitHub takes ten minutes at most.
const JWT: u64 = 540;
/// What a clock here may be ahead of theirs.
const AHEAD: u64 = 60;

/// Which App.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct App {
    app: String,
    installation: u64,
    key: PathBuf,
    #[serde(default = "github")]
    api: String,
    ca_file: Option<PathBuf>,
}

fn github() -> String {
    "https://api.github.com".to_owned()
}

#[derive(Deserialize)]
struct Granted {
    token: String,
    expires_at: String,
}

/// Asks for a token. What is said of a failure has no part of the key, of the JWT or of an answer.
pub(super) fn mint(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    // An error of the parser shows the line, which may be a key that was put there by mistake.
    let app: App = toml::from_str(&text).map_err(|error| format!("it is not as it should be: {}", error.message()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let jwt = app.jwt(now)?;
    let answer = app.ask(&jwt)?;
    let granted: Granted = match answer.status {
        201 => serde_json::from_slice(&answer.body).map_err(|_| "its answer has no token".to_owned())?,
        status => return Err(format!("it said {status}")),
    };
    let until = seconds(&granted.expires_at).ok_or("its answer has no end")?;
    let until = Some(UNIX_EPOCH + Duration::from_secs(until));
    let secret = Secret { username: TOKEN_USER.to_owned(), password: granted.token, until };
    secret.is_plain().then_some(secret).ok_or_else(|| "its answer has no token".to_owned())
}

impl App {
    /// Says who asks, signed (RFC 7515, RFC 7518 section 3.3).
    fn jwt(&self, now: u64) -> Result<String, String> {
        let shown = self.key.display();
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| format!("cannot read '{shown}': {error}"))?;
        let key = any_supported_type(&key).map_err(|_| format!("'{shown}' is not a private key"))?;
        let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]);
        let signer = signer.ok_or_else(|| format!("'{shown}' is not an RSA key"))?;
        let claims = serde_json::json!({ "iat": now.saturating_sub(AHEAD), "exp": now + JWT, "iss": self.app });
        let text = format!("{}.{}", url64(br#"{"alg":"RS256","typ":"JWT"}"#), url64(claims.to_string().as_bytes()));
        let signature = signer.sign(text.as_bytes()).map_err(|_| format!("cannot sign with '{shown}'"))?;
        Ok(format!("{text}.{}", url64(&signature)))
    }

    fn ask(&self, jwt: &str) -> Result<request::Answer, String> {
        let place = self.api.strip_prefix("https://").ok_or("'api' does not begin with 'https://'")?;
        let (authority, path) =
            place.trim_end_matches('/').split_once('/').unwrap_or((place.trim_end_matches('/'), ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| "'api' has no port that is one".to_owned())?),
            None => (authority, 443),
        };
        let until = Instant::now() + LIMIT;
        let failed = |error: std::io::Error| format!("'{host}' cannot be asked: {error}");
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => Resolver::new(tokio::runtime::Handle::current()).resolve(host),
        };
        let mut stream = Err(std::io::ErrorKind::AddrNotAvailable.into());
        for address in addresses {
            stream = TcpStream::connect_timeout(&(address, port).into(), LIMIT / 3);
            if stream.is_ok() {
                break;
            }
        }
        let stream = stream.map_err(failed)?;
        stream.set_read_timeout(Some(LIMIT)).and_then(|()| stream.set_write_timeout(Some(LIMIT))).map_err(failed)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("'{host}' is not the name of a host"))?;
        let tls = ClientConnection::new(self.trust()?, name).map_err(|error| error.to_string())?;
        let path = format!(
            "{}{path}/app/installations/{}/access_tokens",
            if path.is_empty() { "" } else { "/" },
            self.installation
        );
        let text = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nAuthorization: Bearer {jwt}\r\n\
             Accept: application/vnd.github+json\r\nX-GitHub-Api-Version: 2022-11-28\r\nUser-Agent: git-sandbox\r\n\
             Content-Length: 0\r\n\r\n"
        );
        request::over(&mut StreamOwned::new(tls, stream), &text, until).map_err(failed)
    }

    fn trust(&self) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                let failed = |error| format!("cannot read '{}': {error}", path.display());
                for cert in CertificateDer::pem_file_iter(path).map_err(failed)? {
                    roots.add(cert.map_err(failed)?).map_err(|error| error.to_string())?;
                }
            }
            // One that is broken is not trusted; the others are.
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// Base 64 for URLs, without padding (RFC 4648 section 5).
fn url64(bytes: &[u8]) -> String {
    super::base64(bytes).trim_end_matches('=').replace('+', "-").replace('/', "_")
}

/// Seconds since 1970 of `2026-11-22T08:00:00Z`.
fn seconds(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let three = |text: &str, by: char| -> Option<[u64; 3]> {
        let mut parts = text.split(by).map(|part| part.parse().ok());
        let all = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(all)
    };
    let [year, month, day] = three(date, '-')?;
    let [hour, minute, second] = three(time, ':')?;
    let good = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !good || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years that begin in March have their leap day at the end (H. Hinnant, "chrono-Compatible Low-Level Date
    // Algorithms").
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::super::{Keeper, Source};
    use super::*;
    use rustls::{ServerConfig, ServerConnection};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::process::Command;

    /// An RSA key made here: rcgen with ring makes none.
    fn key(dir: &Path) -> Option<PathBuf> {
        let path = dir.join("app.pem");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&path).arg("2048").output();
        made.is_ok_and(|made| made.status.success()).then_some(path)
    }

    /// A forge that answers each connection with one of these, and returns what it was asked.
    fn forge(dir: &Path, answers: Vec<String>) -> (u16, PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(move || {
            let answer = |answer: String| {
                let stream = listener.accept().unwrap().0;
                let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
                let (mut asked, mut byte) = (Vec::new(), [0]);
                while !asked.ends_with(b"\r\n\r\n") && tls.read(&mut byte).is_ok_and(|n| n > 0) {
                    asked.push(byte[0]);
                }
                let _ = tls.write_all(answer.as_bytes());
                tls.conn.send_close_notify();
                let _ = tls.flush();
                String::from_utf8(asked).unwrap()
            };
            answers.into_iter().map(answer).collect()
        });
        (port, ca, served)
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn a_token_is_asked_for_with_a_signed_word_and_kept_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let Some(key) = key(dir.path()) else {
            sandbox_testkit::skip!("openssl makes the key");
        };
        let good = r#"{"token":"ghs_one","expires_at":"2099-01-01T00:00:00Z","permissions":{}}"#;
        let (port, ca, served) = forge(
            dir.path(),
            vec![
                answer("201 Created", good),
                answer("201 Created", &good.replace("ghs_one", "ghs_two")),
                answer("401 Unauthorized", r#"{"message":"secret words"}"#),
                answer("302 Found\r\nLocation: https://elsewhere.test/", ""),
            ],
        );
        let file = dir.path().join("app.toml");
        let text = format!(
            "app = '12'\ninstallation = 34\nkey = '{}'\napi = 'https://127.0.0.1:{port}/api/v3'\nca_file = '{}'\n",
            key.display(),
            ca.display()
        );
        std::fs::write(&file, &text).unwrap();
        let source: Source = format!("github-app:{}", file.display()).parse().unwrap();
        assert_eq!(source.to_string(), format!("github-app:{}", file.display()));
        let keeper = Keeper::new(Default::default(), "/usr/bin:/bin".into());
        let secret = keeper.get(&source, "h").unwrap();
        assert_eq!((secret.expose(), &*secret.username), ("ghs_one", "x-access-token"));
        assert_eq!(keeper.get(&source, "h").unwrap().expose(), "ghs_one", "it is kept");
        keeper.refused(&source, "h");
        assert_eq!(keeper.get(&source, "h").unwrap().expose(), "ghs_two");
        for status in ["401", "302"] {
            keeper.refused(&source, "h");
            let told = keeper.get(&source, "h").unwrap_err().to_string();
            assert_eq!(told, format!("'{}' gave no credential: it said {status}", file.display()));
        }
        let asked = served.join().unwrap();
        assert!(asked[0].starts_with("POST /api/v3/app/installations/34/access_tokens HTTP/1.1\r\n"), "{}", asked[0]);

        // What was signed is what the public half of the key says it is.
        let jwt = asked[0].lines().find_map(|line| line.strip_prefix("Authorization: Bearer ")).unwrap();
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        let decoded = |text: &str| -> Vec<u8> {
            const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let bits = text.chars().flat_map(|digit| {
                let value = DIGITS.find(digit).unwrap();
                (0..6).rev().map(move |bit| (value >> bit & 1) as u8)
            });
            let bits: Vec<u8> = bits.collect();
            bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | bit)).collect()
        };
        let claims: serde_json::Value = serde_json::from_slice(&decoded(signed.split_once('.').unwrap().1)).unwrap();
        assert_eq!(claims["iss"], "12");
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), JWT + AHEAD);
        let (public, sum, text) = (dir.path().join("pub"), dir.path().join("sig"), dir.path().join("text"));
        std::fs::write(&sum, decoded(signature)).unwrap();
        std::fs::write(&text, signed).unwrap();
        let openssl = |args: &[&str], files: &[&Path]| Command::new("openssl").args(args).args(files).output().unwrap();
        let made = openssl(&["rsa", "-pubout", "-out"], &[&public, Path::new("-in"), &key]);
        assert!(made.status.success());
        let verified = openssl(&["dgst", "-sha256", "-verify"], &[&public, Path::new("-signature"), &sum, &text]);
        assert!(verified.status.success(), "{verified:?}");
    }

    #[test]
    fn what_is_wrong_is_told_and_no_secret_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (file, pem) = (dir.path().join("app.toml"), dir.path().join("key.pem"));
        let told = |text: &str| {
            std::fs::write(&file, text).unwrap();
            mint(&file).unwrap_err()
        };
        assert_eq!(told("app = '1'\nkey = '/x'\n"), "it is not as it should be: missing field `installation`");
        let absent = "app = '1'\ninstallation = 2\nkey = '/nowhere/key.pem'\n";
        assert!(told(absent).starts_with("cannot read '/nowhere/key.pem': "), "{}", told(absent));
        let made = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&pem, made.serialize_pem()).unwrap();
        let of = |more: &str| format!("app = '1'\ninstallation = 2\nkey = '{}'\n{more}", pem.display());
        assert_eq!(told(&of("")), format!("'{}' is not an RSA key", pem.display()));
        if let Some(key) = key(dir.path()) {
            let of = |more: &str| format!("app = '1'\ninstallation = 2\nkey = '{}'\n{more}", key.display());
            assert_eq!(told(&of("api = 'http://h'\n")), "'api' does not begin with 'https://'");
            // Nobody listens there.
            let told = told(&of("api = 'https://127.0.0.1:1'\n"));
            assert!(told.starts_with("'127.0.0.1' cannot be asked: "), "{told}");
        }
    }

    #[test]
    fn dates_are_seconds() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2016-07-11T22:14:10Z"), Some(1_468_275_250));
        assert_eq!(seconds("2000-02-29T23:59:59Z"), Some(951_868_799));
        for bad in ["", "2016-07-11", "2016-13-11T22:14:10Z", "2016-07-11T22:14:10+01:00", "x-y-zTa:b:cZ"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
