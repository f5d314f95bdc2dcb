//! From a decision to a connection: a name is resolved once, and what was checked is dialled.

use crate::address::own_addresses;
use crate::policy::{Policy, Reason, Target, straight};
use crate::rule::{Host, Rule};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::Name;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long an attempt has the line to itself before the next address is tried beside it (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// How long the list of this machine's own addresses is believed.
const OWN_AGE: Duration = Duration::from_secs(1);
/// What the resolver was made from: a laptop changes networks.
const SOURCES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

type Stamps = [Option<SystemTime>; 2];

/// Makes connections.
#[derive(Default)]
pub(crate) struct Dialer {
    resolver: RefCell<Option<(Stamps, TokioResolver)>>,
    own: RefCell<Option<(Instant, Rc<[IpAddr]>)>>,
}

impl Dialer {
    /// Connects to a target as a rule of this policy says. `limit` is for names and for connecting, each.
    pub(crate) async fn dial(
        &self,
        policy: &Policy,
        rule: &Rule,
        target: &Target,
        limit: Duration,
    ) -> Result<(TcpStream, SocketAddr), Reason> {
        let addresses = match straight(rule, target) {
            Some(address) => vec![address],
            None => {
                let Host::Name(name) = &target.host else { return Err(Reason::Literal) };
                let resolved = timeout(limit, self.resolve(name)).await.map_err(|_| Reason::Unresolved)??;
                // If it cannot be told which addresses are our own, none is known not to be.
                let own = self.own().ok_or(Reason::Address)?;
                let may = |address: &SocketAddr| policy.may_dial(*address, rule, &own);
                let dialled: Vec<SocketAddr> =
                    resolved.into_iter().map(|ip| SocketAddr::new(ip, target.port)).filter(may).collect();
                if dialled.is_empty() {
                    return Err(Reason::Address);
                }
                dialled
            }
        };
        timeout(limit, connect(addresses)).await.ok().flatten().ok_or(Reason::Unreachable)
    }

    /// This machine's own addresses; `None` if they cannot be told.
    pub(crate) fn own(&self) -> Option<Rc<[IpAddr]>> {
        let mut own = self.own.borrow_mut();
        if let Some((read, addresses)) = own.as_ref()
            && read.elapsed() < OWN_AGE
        {
            return Some(addresses.clone());
        }
        let addresses: Rc<[IpAddr]> = own_addresses().ok()?.into();
        *own = Some((Instant::now(), addresses.clone()));
        Some(addresses)
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Reason> {
        // With the final dot: a search list must not turn an allowed name into another.
        let name = Name::from_ascii(format!("{name}.")).map_err(|_| Reason::Name)?;
        let resolver = self.resolver().ok_or(Reason::Unresolved)?;
        let found = resolver.lookup_ip(name).await.map_err(|_| Reason::Unresolved)?;
        let found: Vec<IpAddr> = found.iter().collect();
        let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = found.into_iter().partition(IpAddr::is_ipv6);
        Ok(alternate(v6, v4))
    }

    fn resolver(&self) -> Option<TokioResolver> {
        let stamps = SOURCES.map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok());
        let mut kept = self.resolver.borrow_mut();
        match kept.as_ref() {
            Some((made_from, resolver)) if *made_from == stamps => Some(resolver.clone()),
            _ => {
                let resolver = TokioResolver::builder_tokio().ok()?.build().ok()?;
                *kept = Some((stamps, resolver.clone()));
                Some(resolver)
            }
        }
    }
}

/// One of each family in turn, IPv6 first (RFC 8305 §4).
fn alternate(v6: Vec<IpAddr>, v4: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

/// The first of these that answers; a slow one does not hold up the next.
async fn connect(addresses: Vec<SocketAddr>) -> Option<(TcpStream, SocketAddr)> {
    let mut waiting = addresses.into_iter().take(MAX_ADDRESSES);
    let mut attempts = JoinSet::new();
    let mut next = waiting.next();
    loop {
        if let Some(address) = next.take() {
            attempts.spawn_local(async move { TcpStream::connect(address).await.ok().map(|stream| (stream, address)) });
        }
        let more = waiting.len() > 0;
        tokio::select! {
            done = attempts.join_next() => match done {
                Some(Ok(Some(connected))) => return Some(connected),
                Some(_) => next = waiting.next(),
                None => return None,
            },
            () = sleep(HEAD_START), if more => next = waiting.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        let all = alternate(ips(&["2001:db8::1", "2001:db8::2", "2001:db8::3"]), ips(&["192.0.2.1"]));
        assert_eq!(all, ips(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"]));
    }
}
