//! TLS for those who do not keep the server on the loopback.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::{StartError, TlsConfig};

/// What makes connections TLS ones, and the certificate that they see.
pub(crate) fn acceptor(config: &TlsConfig) -> Result<(TlsAcceptor, CertificateDer<'static>), StartError> {
    let certificates = CertificateDer::pem_slice_iter(&config.certificates)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| StartError::Pem { what: "certificate", source })?;
    let own = certificates.first().cloned().ok_or(StartError::NoCertificate)?;
    let key = PrivateKeyDer::from_pem_slice(&config.key)
        .map_err(|source| StartError::Pem { what: "key", source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    // An upgrade is HTTP/1.1's.
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(server).into(), own))
}
