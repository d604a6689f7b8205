//! The name in a client certificate.

use std::collections::BTreeSet;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The most names that are looked at.
const NAMES_MAX: usize = 64;

/// Why a certificate stands for nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SanError {
    /// It cannot be read.
    #[error("the client certificate cannot be read: {0}")]
    Unreadable(String),
    /// It was good when the connection was opened.
    #[error("the client certificate has expired")]
    Expired,
    /// None of its names is known.
    #[error("none of the certificate's names stands in identities.toml: {0}")]
    Unknown(String),
    /// More than one is, and it is not for us to choose.
    #[error("more than one of the certificate's names stands in identities.toml: {0}")]
    Several(String),
}

/// What of a verified client certificate matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its URI names as they are, its DNS names after `dns:`.
    names: BTreeSet<String>,
    /// The last second in which it is good, since 1970.
    not_after: u64,
}

impl Certificate {
    /// Reads a certificate (DER) whose chain was verified.
    ///
    /// # Errors
    /// [`SanError::Unreadable`].
    pub fn read(der: &[u8]) -> Result<Self, SanError> {
        let unreadable = |e: &dyn std::fmt::Display| SanError::Unreadable(e.to_string());
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| unreadable(&e))?;
        if !rest.is_empty() {
            return Err(unreadable(&"bytes after its end"));
        }
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        let extension = certificate.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let mut names = BTreeSet::new();
        for name in extension.iter().flat_map(|names| &names.value.general_names) {
            match name {
                // A URI of the scheme `dns` (RFC 4501) would read like our spelling of a DNS name.
                GeneralName::URI(uri) if uri.starts_with("dns:") => {}
                GeneralName::URI(uri) => drop(names.insert((*uri).to_owned())),
                GeneralName::DNSName(dns) => drop(names.insert(format!("dns:{dns}"))),
                _ => {}
            }
            if names.len() > NAMES_MAX {
                return Err(unreadable(&"too many names"));
            }
        }
        Ok(Self { names, not_after })
    }

    /// The one name that is in the list, byte for byte.
    ///
    /// # Errors
    /// [`SanError`]: none, several, or the certificate has expired since.
    pub fn name_in(&self, list: &BTreeSet<String>, now: u64) -> Result<String, SanError> {
        if now > self.not_after {
            return Err(SanError::Expired);
        }
        let mut known = self.names.intersection(list);
        let shown = || self.names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        match (known.next(), known.next()) {
            (Some(name), None) => Ok(name.clone()),
            (Some(_), Some(_)) => Err(SanError::Several(shown())),
            (None, _) => Err(SanError::Unknown(shown())),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    /// A certificate with these names.
    pub(crate) fn certificate(names: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.strip_prefix("dns:") {
                Some(dns) => SanType::DnsName(dns.try_into().unwrap()),
                None => SanType::URI((*name).try_into().unwrap()),
            })
            .collect();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn exactly_one_name_is_in_the_list_byte_for_byte() {
        let list: BTreeSet<String> =
            ["spiffe://corp.example/ci", "dns:ci.corp.example", "dns:*.corp.example"]
                .map(str::to_owned)
                .into();
        let name = |names: &[&str]| Certificate::read(&certificate(names)).unwrap().name_in(&list, 0);
        assert_eq!(name(&["spiffe://corp.example/ci"]).unwrap(), "spiffe://corp.example/ci");
        assert_eq!(name(&["dns:ci.corp.example", "dns:other.example"]).unwrap(), "dns:ci.corp.example");
        for names in [
            &[][..],
            &["spiffe://corp.example/ci/x"],
            &["spiffe://corp.example/c"],
            &["spiffe://corp.example/ci?x"],
            &["SPIFFE://corp.example/ci"],
            &["xspiffe://corp.example/ci"],
            &["dns:ci.corp.example.evil.example"],
            &["dns:a.corp.example"],
            &["dns:CI.corp.example"],
            // A DNS name of our making of the text of a URI, and the other way.
            &["dns:spiffe"],
            &["dns:ci.corp.example", "spiffe://corp.example/ci"],
        ] {
            assert!(name(names).is_err(), "{names:?}");
        }
        let expired = Certificate {
            not_after: 10,
            ..Certificate::read(&certificate(&["dns:ci.corp.example"])).unwrap()
        };
        assert!(expired.name_in(&list, 10).is_ok());
        assert_eq!(expired.name_in(&list, 11), Err(SanError::Expired));
    }

    #[test]
    fn uri_that_looks_like_our_spelling_of_a_dns_name_is_no_dns_name() {
        let list: BTreeSet<String> = ["dns:ci.corp.example".to_owned()].into();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("dns:ci.corp.example".try_into().unwrap())];
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert!(Certificate::read(&der).unwrap().name_in(&list, 0).is_err());
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        let der = certificate(&["dns:a.example"]);
        assert!(Certificate::read(&der[..der.len() - 1]).is_err());
        assert!(Certificate::read(&[der.as_slice(), b"x"].concat()).is_err());
        assert!(Certificate::read(b"").is_err());
    }
}
