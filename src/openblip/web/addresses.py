"""Which addresses are of public servers, and which of this machine or the network around it."""

from __future__ import annotations

import ipaddress
import os
from typing import TypeAlias

ALLOW_PRIVATE = "OPENBLIP_ALLOW_PRIVATE_ADDRESSES"
"""Environment variable: 1 lets images come from private addresses."""
_SERVICES = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "168.63.129.16/32")]
"""Where clouds (Oracle, Azure) serve their own machines, by addresses that Python counts as public."""
_EMBEDDING = {
    ipaddress.IPv6Network("::/96"): 0,
    ipaddress.IPv6Network("::ffff:0:0/96"): 0,
    ipaddress.IPv6Network("::ffff:0:0:0/96"): 0,
    ipaddress.IPv6Network("64:ff9b::/96"): 0,
    ipaddress.IPv6Network("2002::/16"): 80,
}
"""IPv6 networks whose addresses stand for an IPv4 address, and how many bits come behind it."""

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"


def private_allowed() -> bool:
    """Whether the environment lets images come from private addresses."""
    return os.environ.get(ALLOW_PRIVATE, "").lower() in ("1", "true", "yes", "on")


def is_private(text: str) -> bool:
    """Whether an IP address is of no public server: loopback, private, shared (CGNAT), link-local, metadata, ..."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        for network, behind in _EMBEDDING.items():
            if address in network:
                address = ipaddress.IPv4Address((int(address) >> behind) & 0xFFFFFFFF)
                break
    if isinstance(address, ipaddress.IPv6Address):
        service = address.is_site_local
    else:
        service = any(address in network for network in _SERVICES)
    return service or not address.is_global or address.is_multicast or address.is_reserved
