//! Which files look like secrets: by name, and where names are shared with harmless files, by content.
//!
//! A guess for the user's protection, not a wall. What lies in a dependency directory is left alone:
//! `cacert.pem` of a Python environment or a test key of a package came from a registry, is no secret
//! of this user, and the environment is broken without it.

use crate::paths::{READ, base};
use rustix::fs::Mode;
use std::os::fd::BorrowedFd;

/// Directories that package managers fill.
const DEPENDENCIES: &[&[u8]] = &[
    b"node_modules",
    b"bower_components",
    b"jspm_packages",
    b"vendor",
    b"site-packages",
    b"dist-packages",
    b".venv",
    b"venv",
    b".tox",
    b".nox",
    b"__pypackages__",
    b"target",
    b"Pods",
    b".bundle",
    b".gradle",
    b".m2",
    b".pnpm-store",
    b".yarn",
];

/// Returns whether a directory of this name is filled by a package manager.
pub(crate) fn is_dependency_dir(name: &[u8]) -> bool {
    DEPENDENCIES.contains(&name)
}

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// An ordinary name.
    None,
    /// The name is enough.
    Certain,
    /// It is one if its first bytes hold one of these.
    If(&'static [&'static [u8]]),
}

const PRIVATE_KEY: &[&[u8]] = &[b"PRIVATE KEY"];
const NPM_TOKEN: &[&[u8]] = &[b"_authToken", b"_password", b"_auth"];
const CLOUD_KEY: &[&[u8]] = &[b"\"private_key\"", b"\"client_secret\"", b"\"refresh_token\""];

/// Returns what the name of a file says; `dir` is the path of its directory.
pub(crate) fn suspicion(dir: &[u8], name: &[u8]) -> Suspicion {
    let ends =
        |suffix: &[u8]| name.len() >= suffix.len() && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix);
    let has = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    match name {
        b".netrc" | b".git-credentials" | b".pypirc" | b".pgpass" | b".dockercfg" => return Suspicion::Certain,
        b".npmrc" | b".yarnrc" | b".yarnrc.yml" => return Suspicion::If(NPM_TOKEN),
        b"credentials" if base(dir) == b".aws" => return Suspicion::Certain,
        b"config" if base(dir) == b".kube" => return Suspicion::Certain,
        b"application_default_credentials.json" => return Suspicion::If(CLOUD_KEY),
        _ => {}
    }
    if name.starts_with(b".env") {
        // `.env`, `.env.local`, `.envrc`; but not the template that the repository ships.
        let template = [&b".example"[..], b".sample", b".template", b".dist"].iter().any(|suffix| ends(suffix));
        return if template { Suspicion::None } else { Suspicion::Certain };
    }
    if [&b".pem"[..], b".p12", b".pfx", b".jks", b".kdbx"].iter().any(|suffix| ends(suffix)) || has(b".tfstate") {
        return Suspicion::Certain;
    }
    if name.starts_with(b"id_") && !name.contains(&b'.') {
        let ssh = [&b"id_rsa"[..], b"id_ed25519", b"id_ecdsa", b"id_dsa"].iter().any(|key| name.starts_with(key));
        return if ssh { Suspicion::Certain } else { Suspicion::If(PRIVATE_KEY) };
    }
    if ends(b".json") && has(b"service-account") || ends(b".json") && has(b"service_account") {
        return Suspicion::If(CLOUD_KEY);
    }
    Suspicion::None
}

/// Returns whether a file looks like a secret. One that cannot be read is judged by its name.
pub(crate) fn looks_secret(dir_fd: BorrowedFd<'_>, dir: &[u8], name: &[u8]) -> bool {
    match suspicion(dir, name) {
        Suspicion::None => false,
        Suspicion::Certain => true,
        Suspicion::If(marks) => {
            let Ok(file) = rustix::fs::openat(dir_fd, name, READ, Mode::empty()) else { return true };
            // Keys and tokens stand at the start; an .npmrc is never long.
            let mut head = vec![0; 16 * 1024];
            let len = rustix::io::pread(&file, &mut head, 0).unwrap_or(0);
            let head = &head[..len];
            marks.iter().any(|mark| head.windows(mark.len()).any(|window| window == *mark))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn names() {
        for secret in [
            &b".env"[..],
            b".env.local",
            b".env.production",
            b".envrc",
            b"server.pem",
            b"SERVER.PEM",
            b"id_rsa",
            b"id_ed25519",
            b"id_ed25519_sk",
            b"terraform.tfstate",
            b"terraform.tfstate.backup",
            b"a.p12",
            b"a.pfx",
            b"a.jks",
            b"a.kdbx",
            b".netrc",
            b".git-credentials",
            b".pypirc",
        ] {
            assert_eq!(suspicion(b"x", secret), Suspicion::Certain, "{}", secret.escape_ascii());
        }
        for plain in [
            &b".env.example"[..],
            b".env.sample",
            b".env.template",
            b".env.dist",
            b".env.local.example",
            b"id_rsa.pub",
            b"id_generator.rs",
            b"environment",
            b"credentials",
            b"config",
            b"pem",
            b"main.tf",
        ] {
            assert_eq!(suspicion(b"x", plain), Suspicion::None, "{}", plain.escape_ascii());
        }
        assert_eq!(suspicion(b"a/.aws", b"credentials"), Suspicion::Certain);
        assert_eq!(suspicion(b".kube", b"config"), Suspicion::Certain);
        assert!(matches!(suspicion(b"", b"id_map"), Suspicion::If(_)));
        assert!(matches!(suspicion(b"", b"my-service-account-7.json"), Suspicion::If(_)));
    }

    #[test]
    fn contents_decide_where_names_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("id_map", "1 2\n");
        write("id_deploy", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
        write(".npmrc", "registry=https://r.invalid/\n");
        write("prod-service-account.json", "{\"private_key\": \"x\"}");
        let fd = crate::paths::open_root(dir.path()).unwrap();
        let secret = |name: &str| looks_secret(fd.as_fd(), b"", name.as_bytes());
        assert!(!secret("id_map") && secret("id_deploy") && !secret(".npmrc") && secret("prod-service-account.json"));
        write(".npmrc", "//r.invalid/:_authToken=abc\n");
        assert!(secret(".npmrc"));
    }
}
