//! Authorities and certificates that are made for a test.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType, date_time_ymd,
};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Files of a certificate and its key, PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    /// One that nobody knows yet.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate (PEM).
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// For a server at this address.
    pub(crate) fn server(&self, address: IpAddr, at: &Path) -> Result<Pair> {
        let name = SanType::IpAddress(address);
        self.issue(name, ExtendedKeyUsagePurpose::ServerAuth, at, |_| {})
    }

    /// For a client with this URI.
    pub(crate) fn client(&self, uri: &str, at: &Path) -> Result<Pair> {
        self.issue(SanType::URI(uri.try_into()?), ExtendedKeyUsagePurpose::ClientAuth, at, |_| {})
    }

    /// As [`Authority::client`], over since years.
    pub(crate) fn expired(&self, uri: &str, at: &Path) -> Result<Pair> {
        self.issue(SanType::URI(uri.try_into()?), ExtendedKeyUsagePurpose::ClientAuth, at, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    fn issue(
        &self,
        name: SanType,
        usage: ExtendedKeyUsagePurpose,
        at: &Path,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![usage];
        change(&mut params);
        let key = KeyPair::generate()?;
        let pair = Pair { certificate: at.with_extension("pem"), key: at.with_extension("key") };
        fs::write(&pair.certificate, params.signed_by(&key, &self.0)?.pem())?;
        fs::write(&pair.key, key.serialize_pem())?;
        fs::set_permissions(&pair.key, fs::Permissions::from_mode(0o600))?;
        Ok(pair)
    }
}
