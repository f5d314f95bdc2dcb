//! TLS of the listeners: a certificate chain and its key, from PEM files.

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a listener has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or not PEM of the kind that is wanted.
    #[error("cannot read {what} from '{}'", path.display())]
    File {
        /// `a certificate` or `a key`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// The two do not belong together, or are of no use.
    #[error("cannot use the certificate '{}' with its key", cert.display())]
    Unfit {
        /// The chain.
        cert: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// Reads a chain and its key.
pub fn server(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { what, path, source }
    };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect).map_err(file("a certificate", cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(file("a key", key))?;
    let unfit = |source| TlsError::Unfit { cert: cert.to_owned(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(unfit)?;
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).map_err(unfit)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_chain_and_its_key_are_read_and_others_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            let (cert, key) = (dir.path().join(format!("{name}.pem")), dir.path().join(format!("{name}.key")));
            fs::write(&cert, made.cert.pem()).unwrap();
            fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            (cert, key)
        };
        let ((cert, key), (_, other)) = (made("a.test"), made("b.test"));
        assert_eq!(server(&cert, &key).unwrap().alpn_protocols, [b"http/1.1"]);
        let refused = |cert: &Path, key: &Path| server(cert, key).unwrap_err().to_string();
        let shown = cert.display().to_string();
        assert_eq!(refused(&cert, &other), format!("cannot use the certificate '{shown}' with its key"));
        assert_eq!(refused(&cert, &cert), format!("cannot read a key from '{shown}'"));
        let absent = dir.path().join("absent");
        assert_eq!(refused(&absent, &key), format!("cannot read a certificate from '{}'", absent.display()));
    }
}
