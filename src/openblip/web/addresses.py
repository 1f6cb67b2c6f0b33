"""Which addresses are of public servers, and which of this machine or the network around it."""

from __future__ import annotations

import ipaddress
import os
from typing import TypeAlias

ALLOW_PRIVATE = "OPENBLIP_ALLOW_PRIVATE_ADDRESSES"
"""Environment variable: 1 lets images come from private addresses."""
_SERVICES = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "168.63.129.16/32")]
"""Where clouds (Oracle, Azure) serve their own machines, by addresses that Python counts as public."""
_METADATA = {
    ipaddress.ip_address(text)
    for text in (
        *("169.254.169.254", "169.254.170.2", "169.254.170.23"),  # most clouds; containers and pods of AWS
        *("169.254.0.23", "169.254.42.42", "100.100.100.200"),  # Tencent, Scaleway, Alibaba
        *("192.0.0.192", "168.63.129.16"),  # Oracle, Azure
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42"),  # AWS, Google, Scaleway
    )
}
"""Where clouds tell their machines' passwords and keys. No image is there, nor any model."""
_EMBEDDING = {
    ipaddress.IPv6Network("::/96"): 0,
    ipaddress.IPv6Network("::ffff:0:0/96"): 0,
    ipaddress.IPv6Network("::ffff:0:0:0/96"): 0,
    ipaddress.IPv6Network("64:ff9b::/96"): 0,
    ipaddress.IPv6Network("2002::/16"): 80,
}
"""IPv6 networks whose addresses stand for an IPv4 address, and how many bits come behind it."""
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
"""Stand for IPv4 addresses by rules of the network around; Python counts them as public."""

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"


def private_allowed() -> bool:
    """Whether the environment lets images come from private addresses."""
    return os.environ.get(ALLOW_PRIVATE, "").lower() in ("1", "true", "yes", "on")


def is_private(text: str) -> bool:
    """Whether an IP address is of no public server: loopback, private, shared (CGNAT), link-local, metadata, ..."""
    address = _reached(text)
    if isinstance(address, ipaddress.IPv6Address):
        service = address.is_site_local or address in _LOCAL_NAT64
    else:
        service = any(address in network for network in _SERVICES)
    return service or not address.is_global or address.is_multicast or address.is_reserved


def is_metadata(text: str) -> bool:
    """Whether a cloud tells its machines' secrets at this IP address."""
    return _reached(text) in _METADATA


def _reached(text: str) -> Address:
    """The address that packets to an address reach in the end."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        for network, behind in _EMBEDDING.items():
            if address in network:
                return ipaddress.IPv4Address((int(address) >> behind) & 0xFFFFFFFF)
    return address
