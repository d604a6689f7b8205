//! Which addresses are nobody's business: those that lead back into this host, its neighbours or its cloud.

use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not asked unless it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forbidden {
    /// What the address is for.
    pub kind: &'static str,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}

const METADATA: &str = "a cloud's metadata service";
const UNSPECIFIED: &str = "unspecified";
const MULTICAST: &str = "multicast";
const BROADCAST: &str = "broadcast";

/// Addresses at which clouds hand out credentials and what configures a machine, to whoever asks. The vendors' manuals name them.
const METADATA_V4: &[Ipv4Addr] = &[
    // AWS, Azure, Google, OpenStack and most others.
    Ipv4Addr::new(169, 254, 169, 254),
    // AWS: tasks of ECS, pods of EKS.
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    // AWS: DNS and time.
    Ipv4Addr::new(169, 254, 169, 253),
    Ipv4Addr::new(169, 254, 169, 123),
    // Tencent.
    Ipv4Addr::new(169, 254, 0, 23),
    // Alibaba.
    Ipv4Addr::new(100, 100, 100, 200),
    // Oracle, of old.
    Ipv4Addr::new(192, 0, 0, 192),
    // Azure's host: a public address that only a machine of Azure's reaches.
    Ipv4Addr::new(168, 63, 129, 16),
];

const METADATA_V6: &[Ipv6Addr] = &[
    // AWS: machines, pods of EKS, time.
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x123),
    // Google.
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    // OpenStack.
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// What the IANA IPv4 Special-Purpose Address Registry and RFC 5771 set apart: first address, prefix length, use.
const SPECIAL_V4: &[([u8; 4], u32, &str)] = &[
    ([0, 0, 0, 0], 32, UNSPECIFIED),
    ([0, 0, 0, 0], 8, "this network (RFC 791)"),
    ([10, 0, 0, 0], 8, "private (RFC 1918)"),
    ([100, 64, 0, 0], 10, "shared by a carrier's customers (RFC 6598)"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([169, 254, 0, 0], 16, "link-local"),
    ([172, 16, 0, 0], 12, "private (RFC 1918)"),
    ([192, 0, 0, 0], 24, "for protocols (RFC 6890)"),
    ([192, 0, 2, 0], 24, "for documentation"),
    ([192, 88, 99, 0], 24, "a 6to4 relay (RFC 7526)"),
    ([192, 168, 0, 0], 16, "private (RFC 1918)"),
    ([198, 18, 0, 0], 15, "for benchmarks (RFC 2544)"),
    ([198, 51, 100, 0], 24, "for documentation"),
    ([203, 0, 113, 0], 24, "for documentation"),
    ([224, 0, 0, 0], 4, MULTICAST),
    ([255, 255, 255, 255], 32, BROADCAST),
    ([240, 0, 0, 0], 4, "reserved (RFC 1112)"),
];

/// The same of the IANA IPv6 Special-Purpose Address Registry. What is in none of these and not in 2000::/3 is given to
/// nobody (RFC 4291, section 2.4).
const SPECIAL_V6: &[([u16; 8], u32, &str)] = &[
    ([0; 8], 128, UNSPECIFIED),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback"),
    ([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "an IPv4 address in IPv6 form (RFC 4291)"),
    ([0, 0, 0, 0, 0, 0, 0, 0], 96, "an IPv4 address in IPv6 form (RFC 4291)"),
    ([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, "a translated IPv4 address (RFC 6052)"),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "a translated IPv4 address (RFC 8215)"),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "a sink (RFC 6666)"),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "a tunnelled IPv4 address (Teredo)"),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "for documentation"),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "for protocols (RFC 2928)"),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "a tunnelled IPv4 address (6to4)"),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "for documentation"),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "private (ULA, RFC 4193)"),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local"),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site-local (RFC 3879)"),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, MULTICAST),
];

/// Whether an address is one of the open Internet's.
///
/// # Errors
/// What else it is.
pub fn public(address: IpAddr) -> Result<(), Forbidden> {
    if metadata(address) {
        return Err(Forbidden { kind: METADATA });
    }
    let kind = match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    };
    kind.map_or(Ok(()), |kind| Err(Forbidden { kind }))
}

/// Whether the addresses that an origin lists hold this one.
///
/// A range never holds a metadata service: that one is listed by itself. What is no source at all is never listed. In IPv6
/// form both count as well.
///
/// # Errors
/// What the address is.
pub(super) fn listed(address: IpAddr, nets: &[IpNet]) -> Result<(), Forbidden> {
    let really = embedded(address).map_or(address, IpAddr::V4);
    if never(really) || never(address) {
        return public(address);
    }
    let secret = metadata(address) || metadata(really);
    let whole = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    if nets.iter().any(|net| net.contains(&address) && (whole(net) || !secret)) {
        return Ok(());
    }
    let kind = if secret { METADATA } else { "not one of those that are listed for it" };
    Err(Forbidden { kind })
}

/// Why a range cannot be listed: nothing in it is ever a source.
pub(super) fn unlistable(net: &IpNet) -> Option<&'static str> {
    // A range of everything begins with the unspecified address too.
    never(net.addr()).then(|| public(net.addr()).err().map(|forbidden| forbidden.kind))?
}

fn never(address: IpAddr) -> bool {
    matches!(public(address), Err(Forbidden { kind: UNSPECIFIED | MULTICAST | BROADCAST }))
}

fn metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => METADATA_V4.contains(&address),
        IpAddr::V6(address) => METADATA_V6.contains(&address),
    }
}

/// The IPv4 address to which an IPv6 address leads.
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let bits = address.to_bits();
    let [a, b, ..] = address.segments();
    let last = Ipv4Addr::from_bits(u32::try_from(bits & 0xffff_ffff).unwrap_or_default());
    match (a, b) {
        (0, 0) | (0x64, 0xff9b) => Some(last),
        (0x2002, _) => Some(Ipv4Addr::from_bits(u32::try_from(bits >> 80 & 0xffff_ffff).unwrap_or_default())),
        (0x2001, 0) => Some(Ipv4Addr::from_bits(!last.to_bits())),
        _ => None,
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let within = |first: &[u8; 4], length: u32| {
        let far = address.to_bits() ^ Ipv4Addr::from_octets(*first).to_bits();
        far.leading_zeros() >= length
    };
    SPECIAL_V4.iter().find(|(first, length, _)| within(first, *length)).map(|(_, _, kind)| *kind)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let within = |first: &[u16; 8], length: u32| {
        let far = address.to_bits() ^ Ipv6Addr::from_segments(*first).to_bits();
        far.leading_zeros() >= length
    };
    let kind = SPECIAL_V6.iter().find(|(first, length, _)| within(first, *length)).map(|(_, _, kind)| *kind);
    let global = address.to_bits() >> 125 == 0b001;
    kind.or_else(|| (!global).then_some("given to nobody"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn public_refuses_every_special_address_and_its_borders() {
        for (special, neighbours) in [
            ("10.0.0.0 10.255.255.255", "9.255.255.255 11.0.0.0"),
            ("100.64.0.0 100.127.255.255", "100.63.255.255 100.128.0.0"),
            ("127.0.0.1 127.255.255.255", "126.255.255.255 128.0.0.0"),
            ("169.254.0.0 169.254.169.254 169.254.255.255", "169.253.255.255 169.255.0.0"),
            ("172.16.0.0 172.31.255.255", "172.15.255.255 172.32.0.0"),
            ("192.168.0.0 192.168.255.255", "192.167.255.255 192.169.0.0"),
            ("192.0.0.0 192.0.0.192 192.0.2.1 192.88.99.1", "191.255.255.255 192.0.1.0 192.0.3.0"),
            ("198.18.0.0 198.19.255.255 198.51.100.9", "198.17.255.255 198.20.0.0"),
            ("203.0.113.0 224.0.0.1 240.0.0.1 255.255.255.255", "203.0.112.255 203.0.114.0 223.255.255.255"),
            ("0.0.0.0 0.255.255.255 168.63.129.16 100.100.100.200", "1.0.0.0 168.63.129.17"),
            (":: ::1 ::2 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8", "2600::1"),
            (
                "64:ff9b::8.8.8.8 64:ff9b::a00:1 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2001:1ff::1",
                "2001:200::1",
            ),
            ("2002:7f00:1::1 3fff::1 4000::1 5f00::1 fc00::1 fdff::1 fd00:ec2::254", "3ffe::1 2003::1"),
            ("fe80::1 febf::1 fec0::1 ff02::1 fe80::a9fe:a9fe", "2a00::1"),
        ] {
            special.split(' ').for_each(|text| assert!(public(ip(text)).is_err(), "{text}"));
            neighbours.split(' ').for_each(|text| assert_eq!(public(ip(text)), Ok(()), "{text}"));
        }
    }

    #[test]
    fn listed_range_never_holds_a_metadata_service() {
        let nets = |texts: &str| -> Vec<IpNet> { texts.split(' ').map(|t| t.parse().unwrap()).collect() };
        let wide = nets("169.254.0.0/16 0.0.0.0/0 ::/0");
        for secret in [
            "169.254.169.254",
            "168.63.129.16",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2001:0:1:2:3:4:5601:5601",
        ] {
            assert!(listed(ip(secret), &wide).is_err(), "{secret}");
        }
        for nowhere in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:0.0.0.0"] {
            assert!(listed(ip(nowhere), &wide).is_err(), "{nowhere}");
        }
        assert!(listed(ip("169.254.1.1"), &wide).is_ok());
        assert!(listed(ip("169.254.169.254"), &nets("169.254.169.254/32")).is_ok());
        // What is listed is all that the origin may have.
        assert!(listed(ip("8.8.8.8"), &nets("10.0.0.0/8")).is_err());
        assert!(listed(ip("::ffff:10.0.0.1"), &nets("10.0.0.0/8")).is_err());
    }

    #[test]
    fn unlistable_is_what_no_source_can_have() {
        for net in ["0.0.0.0/32", "0.0.0.0/0", "::/0", "224.0.0.0/4", "255.255.255.255/32", "ff00::/8"] {
            assert!(unlistable(&net.parse().unwrap()).is_some(), "{net}");
        }
        for net in ["127.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/8", "169.254.169.254/32"] {
            assert_eq!(unlistable(&net.parse().unwrap()), None, "{net}");
        }
    }
}
