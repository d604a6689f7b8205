//! The resolver of the guarded client: allowed addresses, or none.

use crate::sources::{Origin, public};
use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The most addresses of one name.
const ADDRESSES_MAX: usize = 64;

/// How names become addresses.
pub trait Lookup: Send + Sync + 'static {
    /// The addresses of a host.
    ///
    /// # Errors
    /// The resolver's.
    fn lookup(&self, host: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>>;
}

/// The host's own resolver, with its `/etc/hosts` and all: getaddrinfo(3).
#[derive(Debug, Clone, Copy)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// A name has an address that its origin may not have.
#[derive(Debug)]
pub(super) struct DeniedAddress {
    host: String,
    address: IpAddr,
    kind: &'static str,
}

impl fmt::Display for DeniedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has the address {}, which is {}", self.host, self.address, self.kind)
    }
}

impl std::error::Error for DeniedAddress {}

/// Resolves names for the client of one origin (none: of those that are not listed).
pub(super) struct GuardedResolver {
    lookup: Arc<dyn Lookup>,
    origin: Option<Arc<Origin>>,
}

impl GuardedResolver {
    pub(super) fn new(lookup: Arc<dyn Lookup>, origin: Option<Origin>) -> Self {
        Self { lookup, origin: origin.map(Arc::new) }
    }

    /// The addresses of a name. One that is not allowed spoils the answer: who mixes them wants to be met at the other.
    pub(super) fn addresses(&self, host: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, BoxError>> {
        let (lookup, origin, host) = (Arc::clone(&self.lookup), self.origin.clone(), host.to_owned());
        Box::pin(async move {
            let found = lookup.lookup(host.clone()).await?;
            if found.is_empty() || found.len() > ADDRESSES_MAX {
                return Err(format!("{host} has {} addresses", found.len()).into());
            }
            for address in &found {
                let allowed =
                    origin.as_ref().map_or_else(|| public(*address), |origin| origin.may_have(*address));
                if let Err(forbidden) = allowed {
                    return Err(DeniedAddress { host, address: *address, kind: forbidden.kind }.into());
                }
            }
            Ok(found)
        })
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.addresses(name.as_str());
        Box::pin(async move {
            // The port is the URL's.
            let found = found.await?.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as Addrs)
        })
    }
}
