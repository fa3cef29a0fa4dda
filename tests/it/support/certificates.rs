//! Certificates of a test's own, as files.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What a server or a client shows.
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(parameters, key), pem }
    }

    /// Its own certificate.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("ca.pem");
        std::fs::write(&path, &self.pem).expect("a file");
        path
    }

    /// One for a host, or for a client; one that has `expired` was in force until 2021.
    pub fn sign(&self, folder: &Path, host: &str, expired: bool) -> Certificate {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new([host.to_owned()]).expect("a host");
        if expired {
            parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let signed = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let certificate = folder.join("certificate.pem");
        let path = folder.join("key.pem");
        std::fs::write(&certificate, signed.pem()).expect("a file");
        std::fs::write(&path, key.serialize_pem()).expect("a file");
        Certificate { certificate, key: path }
    }
}
