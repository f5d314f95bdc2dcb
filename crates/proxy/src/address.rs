//! Which addresses a name may lead to, whoever answered for it.
//!
//! A name is allowed by what it is called; what it resolves to is chosen by whoever runs its zone, or
//! by a line in `/etc/hosts`. So that an allowed name cannot be turned into a way to the machine
//! itself, its network or the cloud's metadata, each resolved address is looked at before it is
//! dialled, also where it hides another: v4-mapped, NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380).

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of place an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somewhere in the world.
    Public,
    /// In a network that is somebody's own: dialled only when a rule opens its range.
    Private,
    /// This machine, its link, many at once, or where clouds hand out credentials: never by a name.
    Never,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(segments: [u16; 8], bits: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), bits)
}

const NEVER_V4: [Ipv4Net; 8] = [
    v4(0, 0, 0, 0, 8),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
    // Metadata and agents of clouds outside of the link-local range: Alibaba, Azure, Oracle.
    v4(100, 100, 100, 200, 32),
    v4(168, 63, 129, 16, 32),
    v4(192, 0, 0, 192, 32),
];

const PRIVATE_V4: [Ipv4Net; 4] =
    [v4(10, 0, 0, 0, 8), v4(172, 16, 0, 0, 12), v4(192, 168, 0, 0, 16), v4(100, 64, 0, 0, 10)];

const NEVER_V6: [Ipv6Net; 5] = [
    // Unspecified, loopback, and the old v4-compatible form.
    v6([0; 8], 96),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    // Metadata of EC2.
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
    // NAT64 with a prefix of the network's own: where the IPv4 address is in it depends on the network (RFC 8215).
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
];

const PRIVATE_V6: [Ipv6Net; 2] = [
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    // Site-local: deprecated, still routed where it is in use.
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
];

/// Returns the kind of an address, by itself and by the one that is in it.
pub fn kind(address: IpAddr) -> Kind {
    match address.to_canonical() {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => kind_v4(inner),
            None if NEVER_V6.iter().any(|net| net.contains(&address)) => Kind::Never,
            None if PRIVATE_V6.iter().any(|net| net.contains(&address)) => Kind::Private,
            None => Kind::Public,
        },
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    if NEVER_V4.iter().any(|net| net.contains(&address)) {
        Kind::Never
    } else if PRIVATE_V4.iter().any(|net| net.contains(&address)) {
        Kind::Private
    } else {
        Kind::Public
    }
}

/// The IPv4 address to which packets for an IPv6 address are in truth sent.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let pair = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(pair(high, low)),
        [0x2002, high, low, ..] => Some(pair(high, low)),
        // The client's address is stored with each bit turned.
        [0x2001, 0, _, _, _, _, high, low] => Some(pair(!high, !low)),
        _ => None,
    }
}

/// Whether a resolved address may be dialled: in the world, or private and in the range that the rule
/// opens; never one of this machine's own, since what listens there often trusts whoever reaches it.
pub fn may_dial(address: IpAddr, range: Option<&IpNet>, own: &[IpAddr]) -> bool {
    let address = address.to_canonical();
    let inner = match address {
        IpAddr::V6(outer) => embedded(outer).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    if own.contains(&address) || inner.is_some_and(|inner| own.contains(&inner)) {
        return false;
    }
    match kind(address) {
        Kind::Public => true,
        Kind::Private => range.is_some_and(|range| range.contains(&address)),
        Kind::Never => false,
    }
}

/// Returns the addresses of this machine's interfaces, from what the kernel answers to everyone:
/// `/proc/net/fib_trie` (IPv4: what it takes for local) and `/proc/net/if_inet6`. Files, not
/// rtnetlink: the same facts, read without a message format of our own.
///
/// # Errors
/// If the list cannot be read. A machine without IPv6 is none.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut own = local_v4(&std::fs::read_to_string("/proc/net/fib_trie")?);
    match std::fs::read_to_string("/proc/net/if_inet6") {
        Ok(text) => own.extend(local_v6(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(own)
}

/// The leaves `|-- ADDRESS` that are followed by `/32 host LOCAL`.
fn local_v4(trie: &str) -> Vec<IpAddr> {
    let mut own = Vec::new();
    let mut leaf = None;
    for line in trie.lines().map(str::trim_start) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            own.extend(leaf.map(IpAddr::V4).filter(|address| !own.contains(address)));
        }
    }
    own
}

/// The first field of each line: 32 hexadecimal digits.
fn local_v6(table: &str) -> impl Iterator<Item = IpAddr> {
    let address = |line: &str| {
        let digits = line.split_ascii_whitespace().next().filter(|digits| digits.len() == 32)?;
        u128::from_str_radix(digits, 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from(bits)))
    };
    table.lines().filter_map(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Never, Private, Public};

    #[test]
    fn each_range_of_the_deny_set_from_its_first_to_its_last_address() {
        let cases = [
            ("0.0.0.0", Never),
            ("0.255.255.255", Never),
            ("1.0.0.0", Public),
            ("9.255.255.255", Public),
            ("10.0.0.0", Private),
            ("10.255.255.255", Private),
            ("11.0.0.0", Public),
            ("100.63.255.255", Public),
            ("100.64.0.0", Private),
            ("100.100.100.199", Private),
            ("100.100.100.200", Never),
            ("100.127.255.255", Private),
            ("100.128.0.0", Public),
            ("126.255.255.255", Public),
            ("127.0.0.0", Never),
            ("127.255.255.255", Never),
            ("128.0.0.0", Public),
            ("168.63.129.15", Public),
            ("168.63.129.16", Never),
            ("169.253.255.255", Public),
            ("169.254.0.0", Never),
            ("169.254.169.254", Never),
            ("169.254.255.255", Never),
            ("169.255.0.0", Public),
            ("172.15.255.255", Public),
            ("172.16.0.0", Private),
            ("172.31.255.255", Private),
            ("172.32.0.0", Public),
            ("192.0.0.191", Public),
            ("192.0.0.192", Never),
            ("192.167.255.255", Public),
            ("192.168.0.0", Private),
            ("192.168.255.255", Private),
            ("192.169.0.0", Public),
            ("223.255.255.255", Public),
            ("224.0.0.0", Never),
            ("239.255.255.255", Never),
            ("240.0.0.0", Never),
            ("255.255.255.255", Never),
            ("::", Never),
            ("::1", Never),
            ("::7f00:1", Never),
            ("2600::1", Public),
            ("fbff::1", Public),
            ("fc00::", Private),
            ("fd00:ec1:ffff::1", Private),
            ("fd00:ec2::", Never),
            ("fd00:ec2::254", Never),
            ("fd00:ec2:ffff:ffff:ffff:ffff:ffff:ffff", Never),
            ("fd00:ec3::", Private),
            ("fdff::1", Private),
            ("fe00::1", Public),
            ("fe80::", Never),
            ("febf::1", Never),
            ("fec0::1", Private),
            ("feff::1", Private),
            ("ff00::", Never),
            ("ff02::1", Never),
        ];
        for (address, expected) in cases {
            assert_eq!(kind(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn an_address_within_an_address_is_what_counts() {
        let cases = [
            ("::ffff:127.0.0.1", Never),
            ("::ffff:169.254.169.254", Never),
            ("::ffff:10.0.0.1", Private),
            ("::ffff:93.184.216.34", Public),
            ("64:ff9b::7f00:1", Never),
            ("64:ff9b::a9fe:a9fe", Never),
            ("64:ff9b::10.1.2.3", Private),
            ("64:ff9b::93.184.216.34", Public),
            ("64:ff9b:1::a9fe:a9fe", Never),
            ("2002:7f00:1::", Never),
            ("2002:a9fe:a9fe::1", Never),
            ("2002:c0a8:101::1", Private),
            ("2002:5db8:d822::1", Public),
            // Teredo of 127.0.0.1, 192.168.1.1 and 93.184.216.34, turned.
            ("2001:0:1:2:3:4:80ff:fffe", Never),
            ("2001:0:1:2:3:4:3f57:fefe", Private),
            ("2001:0:1:2:3:4:a247:27dd", Public),
            // Only the first 32 bits make it Teredo.
            ("2001:1:1:2:3:4:80ff:fffe", Public),
        ];
        for (address, expected) in cases {
            assert_eq!(kind(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn a_range_opens_private_addresses_and_nothing_else() {
        let may = |address: &str, range: &str| {
            let range = (!range.is_empty()).then(|| range.parse::<IpNet>().unwrap());
            may_dial(address.parse().unwrap(), range.as_ref(), &["10.0.0.5".parse().unwrap()])
        };
        assert!(may("93.184.216.34", ""));
        assert!(may("93.184.216.34", "10.0.0.0/8"), "a range closes nothing");
        assert!(!may("10.0.0.4", ""));
        assert!(may("10.0.0.4", "10.0.0.0/24"));
        assert!(may("::ffff:10.0.0.4", "10.0.0.0/24"));
        assert!(!may("10.0.1.4", "10.0.0.0/24"));
        assert!(!may("10.0.0.5", "10.0.0.0/24"), "our own");
        assert!(!may("::ffff:10.0.0.5", "10.0.0.0/24"), "our own");
        assert!(!may("64:ff9b::10.0.0.5", "::/0"), "our own");
        assert!(!may("127.0.0.1", "127.0.0.0/8"), "never by a name");
        assert!(!may("169.254.169.254", "0.0.0.0/0"));
        assert!(may("fd12::1", "fd00::/8"));
        assert!(!may("64:ff9b::10.0.0.4", "10.0.0.0/24"), "a range is of what is dialled");
    }

    #[test]
    fn own_addresses_are_read_from_the_kernel() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 127.0.0.0/8 2 0 2\n\
                    \x20       |-- 127.0.0.0\n           /8 host LOCAL\n        |-- 127.0.0.1\n           /32 host LOCAL\n\
                    \x20       |-- 127.255.255.255\n           /32 link BROADCAST\n  |-- 203.0.113.7\n     /32 host LOCAL\n\
                    Local:\n  |-- 203.0.113.7\n     /32 host LOCAL\n";
        assert_eq!(local_v4(trie), ["127.0.0.1", "203.0.113.7"].map(|a| a.parse::<IpAddr>().unwrap()));
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     20010db8000000000000000000000042 02 40 00 80     eth0\nbad\n";
        let v6: Vec<IpAddr> = local_v6(table).collect();
        assert_eq!(v6, ["::1", "2001:db8::42"].map(|a| a.parse::<IpAddr>().unwrap()));
        let own = own_addresses().unwrap();
        assert!(own.contains(&"127.0.0.1".parse().unwrap()), "{own:?}");
    }
}
