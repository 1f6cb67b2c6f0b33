"""Where a server listens, and who may reach it there: for servers of every kind."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from openblip.errors import OptionError

LOOPBACK_HOSTS = ("127.0.0.1:*", "localhost:*", "[::1]:*")
"""What clients on this machine call it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, has_keys: bool, open_to_all: bool | None = None) -> None:
    """Raises OptionError for an address that others can reach, unless requests need a key or the user said so.

    Args:
        open_to_all: whether the user said so with --no-key; None for commands without it.
    """
    if has_keys or open_to_all or is_loopback(host):
        return
    advice = "give --api-key-file FILE"
    if open_to_all is not None:
        advice += ", or --no-key if something in front of it checks who asks"
    raise OptionError(f"on {host}, everyone who reaches this machine could use the server: {advice}")


def known_hosts(has_keys: bool, names: Sequence[str]) -> list[str] | None:
    """The Host headers that are answered; None for any, where a key keeps others out.

    Without a key, a web page could lead its visitors' browsers to a server on their own machine by a name of its own.

    Args:
        names: by which clients call the server beside this machine's own names.
    """
    return None if has_keys and not names else [*LOOPBACK_HOSTS, *names]


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients; port 0 is any that is free.

    Raises:
        OptionError: nobody may listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"the server cannot listen on {host}, port {port} ({reason}): give another --port") from error
    return listener


def address_of(host: str, listener: socket.socket) -> str:
    """The web address of a server."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
