"""From which web servers images may come, and how much of them: one object that a front door hands over."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from openblip.errors import OptionError, yes_or_no
from openblip.web.addresses import private_allowed

ALLOW_URLS = "OPENBLIP_ALLOW_URLS"
"""Environment variable: 0 keeps images from being fetched from the web; names of hosts allow those alone."""
MAX_DOWNLOAD_BYTES = 100 * 2**20
SILENCE_SECONDS = 20.0
DOWNLOAD_SECONDS = 120.0
ANY = "*"
_HOST = re.compile(r"(\*\.)?(\[[0-9a-f:.]+\]|[^\s/@:?#*\[\]\\]+)(:[0-9]{1,5})?")

Found: TypeAlias = "tuple[int, int, int, str, Any]"
"""What `socket.getaddrinfo` gives: family, type, protocol, canonical name, socket address."""
Resolver: TypeAlias = Callable[..., "list[Found]"]


@dataclass(frozen=True)
class UrlPolicy:
    """From which web addresses images are fetched. As it is made, from none: name the hosts that you trust.

    Every address that a host's name stands for is checked, the connection goes to one of the checked addresses, and
    each redirect is treated like the first address. Addresses at which clouds tell their machines' secrets are never
    asked.

    Attributes:
        hosts: names of servers: "images.example.org", "*.example.org" for all names under it, "*" for any server. They
            are asked at the usual ports of http and https; "example.org:8080" names another one.
        allow_private: whether these may be this machine, or in private networks.
        use_proxies: whether the proxies that the environment names (http_proxy, ...) are used. A proxy looks up names
            itself: it has to refuse private addresses by itself, too.
        silence_s: seconds a server may take between two pieces of its answer.
        total_s: seconds for everything, redirects included.
        max_bytes: largest file taken.
        resolve: looks up names instead of `socket.getaddrinfo`, with its arguments and results.

    Raises:
        OptionError: a host that is no name, or a number that is not positive.
    """

    hosts: str | Iterable[str] = ()
    allow_private: bool = False
    use_proxies: bool = False
    silence_s: float = SILENCE_SECONDS
    total_s: float = DOWNLOAD_SECONDS
    max_bytes: int = MAX_DOWNLOAD_BYTES
    resolve: Resolver | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        hosts = [self.hosts] if isinstance(self.hosts, str) else list(self.hosts)
        object.__setattr__(self, "hosts", tuple(map(_checked_host, hosts)))
        for name in ("allow_private", "use_proxies"):
            object.__setattr__(self, name, yes_or_no(name, getattr(self, name)))
        for name in ("silence_s", "total_s", "max_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise OptionError(f"{name} is {value!r}: it must be a number above 0")


def url_policy(allow_urls: UrlPolicy | bool | None = None) -> UrlPolicy:
    """What holds for images of the library: the environment's rules, unless somebody says more.

    Args:
        allow_urls: True and False for any public server and none, whatever OPENBLIP_ALLOW_URLS says.
    """
    if isinstance(allow_urls, UrlPolicy):
        return allow_urls
    policy = UrlPolicy((), private_allowed(), use_proxies=True)
    if allow_urls is not None:
        return replace(policy, hosts=ANY if yes_or_no("allow_urls", allow_urls) else ())
    text = os.environ.get(ALLOW_URLS, "").strip()
    if text.lower() in ("", "1", "true", "yes", "on"):
        return replace(policy, hosts=ANY)
    if text.lower() in ("0", "false", "no", "off"):
        return policy
    return replace(policy, hosts=[host for host in re.split(r"[\s,]+", text) if host])


def allows(hosts: Iterable[str], host: str, port: int, usual_port: int) -> bool:
    """Whether one of the patterns of `UrlPolicy.hosts` is of a server.

    Args:
        host: in ASCII and small letters.
        usual_port: of the scheme.
    """
    host = host.rstrip(".")
    shown = f"[{host}]" if ":" in host else host
    for pattern in hosts:
        if pattern == ANY:
            return True
        name, behind, wanted = pattern.rpartition(":") if re.search(r":[0-9]+$", pattern) else (pattern, "", "")
        fits = shown.endswith(name[1:]) and shown != name[2:] if name.startswith("*.") else shown == name
        if fits and port == (int(wanted) if behind else usual_port):
            return True
    return False


def _checked_host(host: object) -> str:
    text = host.strip().lower() if isinstance(host, str) else ""
    if text == ANY:
        return text
    found = _HOST.fullmatch(text)
    if found is None:
        raise OptionError(
            f'{host!r} names no host: give a name such as "images.example.org", "*.example.org" or "example.org:8080"'
        )
    start, name, port = found[1] or "", found[2].rstrip("."), found[3] or ""
    try:
        return start + (name if name.isascii() else name.encode("idna").decode("ascii")) + port
    except UnicodeError as error:
        raise OptionError(f"{host!r} names no host ({error}): check it") from error
