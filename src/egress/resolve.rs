//! Names to addresses, as this machine knows them; and which addresses are its own.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;

use crate::model::host::HostName;

/// Most addresses of one name that are looked at.
pub const MAX_ADDRESSES: usize = 32;

/// The answer to come.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;

/// Who knows names.
pub trait Resolve: Send + Sync {
    /// The addresses of a name, each once.
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a>;

    /// Whether the address is one of this machine's.
    fn is_own(&self, address: IpAddr) -> bool;
}

/// The machine's resolver (`getaddrinfo(3)`: its hosts file, then DNS).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut addresses = Vec::new();
            for address in found.map(|found| found.ip()).take(MAX_ADDRESSES) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Ok(addresses)
        })
    }

    fn is_own(&self, address: IpAddr) -> bool {
        // Only an address of the machine's can be bound (ip(7)); where the kernel was told to allow others, all look like its
        // own, which is denied.
        UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_machine_knows_is_found_and_its_own_addresses_are_known() {
        let crate::model::host::Host::Name(name) = "localhost".parse().unwrap() else {
            panic!("a name");
        };
        let found = SystemResolver.resolve(&name).await.unwrap();
        assert!(
            !found.is_empty() && found.iter().all(IpAddr::is_loopback),
            "{found:?}"
        );
        assert!(SystemResolver.is_own("127.0.0.1".parse().unwrap()));
        assert!(!SystemResolver.is_own("192.0.2.1".parse().unwrap()));
        assert!(!SystemResolver.is_own("2001:db8::1".parse().unwrap()));
    }
}
