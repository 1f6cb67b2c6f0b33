"""From which servers images come: real servers on this machine, under names that the tests look up."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

import pytest

import openblip
from openblip import ImageError, OptionError, UrlPolicy
from openblip.web import addresses
from openblip.web.policy import allows, url_policy

from .test_web import GOOD, OK, serving

OUTSIDE = "127.0.0.2"
"""A server at this address counts as a public one here."""
MOVED = b"HTTP/1.1 302 Found\r\nLocation: %b\r\n\r\n"


def _has_two_addresses() -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((OUTSIDE, 0))
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not _has_two_addresses(), reason="this system has one address of its own (macOS)")


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(addresses.ALLOW_PRIVATE)
    monkeypatch.delenv("no_proxy", raising=False)
    is_private = addresses.is_private
    monkeypatch.setattr(addresses, "is_private", lambda address: address != OUTSIDE and is_private(address))


def resolver(**names: str | list[str]) -> Callable[..., list[Any]]:
    """Gives the addresses of a name (dots as underscores) one after the other, the last one for ever."""
    answers: dict[str, Iterator[str]] = {}
    for name, found in names.items():
        listed = [found] if isinstance(found, str) else found
        answers[name.replace("_", ".")] = chain(listed[:-1], repeat(listed[-1]))

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        if host not in answers:
            raise socket.gaierror(f"nobody knows {host}")
        several = next(answers[host]).split("+")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in several]

    return look_up


def test_a_service_fetches_nothing_unless_told_from_where() -> None:
    with serving((GOOD, b"")) as server:
        with pytest.raises(ImageError, match="is a web address, and those are not allowed here"):
            openblip.load_image(server.url, allow_urls=UrlPolicy())
        with pytest.raises(ImageError, match=r"127\.0\.0\.1:\d+ is not among the hosts that images may come from"):
            openblip.load_image(server.url, allow_urls=UrlPolicy("images.example"))
        assert server.requests == []


def test_named_hosts_are_asked_at_their_checked_addresses() -> None:
    with serving((GOOD, b""), address=OUTSIDE) as server:
        policy = UrlPolicy(f"*.shop.example:{server.port}", resolve=resolver(a_shop_example=OUTSIDE))
        assert openblip.load_image(f"http://A.shop.example:{server.port}/1.png", allow_urls=policy).size == (8, 8)
        assert b"Host: a.shop.example:" in server.requests[0]


def test_a_name_that_means_this_machine_the_second_time_is_looked_up_once() -> None:
    with serving((GOOD, b"")) as inside, serving((GOOD, b""), address=OUTSIDE, port=inside.port) as outside:
        policy = UrlPolicy("*", resolve=resolver(evil_example=[OUTSIDE, "127.0.0.1"]))
        assert openblip.load_image(f"http://evil.example:{inside.port}/a.png", allow_urls=policy).size == (8, 8)
        assert (len(outside.requests), len(inside.requests)) == (1, 0)
        with pytest.raises(ImageError, match="in a private network"):
            openblip.load_image(f"http://evil.example:{inside.port}/a.png", allow_urls=policy)
        assert inside.requests == []


def test_a_redirect_is_looked_up_and_checked_like_the_first_address() -> None:
    with serving((GOOD, b"")) as inside:
        back = MOVED % b"http://evil.example:%d/" % inside.port
        with serving((back, b""), address=OUTSIDE, port=inside.port) as outside:
            # The name of a public server leads to itself, and then means this machine.
            policy = UrlPolicy("*", resolve=resolver(evil_example=[OUTSIDE, "127.0.0.1"]))
            with pytest.raises(ImageError, match="in a private network"):
                openblip.load_image(f"http://evil.example:{inside.port}/", allow_urls=policy)
            assert len(outside.requests) == 1
        assert inside.requests == []


@pytest.mark.parametrize(
    "target",
    [
        *(
            b"http://127.0.0.1:%d/",
            b"http://localhost:%d/",
            b"http://[::1]:%d/",
            b"http://0:%d/",
            b"http://2130706433:%d/",
        ),
        *(b"//127.0.0.1:%d/", b"http://\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1:%d/", b"http://127.0.0.1.:%d/"),
        *(b"http://a.example\\@127.0.0.1:%d/", b"http://a.example:80@127.0.0.1:%d/", b"HTTP://127.0.0.1:%d\t/"),
    ],
)
@pytest.mark.parametrize("hosts", ["*", "a.example:{port}"])
def test_redirects_do_not_lead_inside(target: bytes, hosts: str) -> None:
    with serving((GOOD, b"")) as inside:
        with serving((MOVED % (target % inside.port), b""), address=OUTSIDE) as outside:

            def look_up(host: str, port: int, **kinds: Any) -> list[Any]:
                found = OUTSIDE if host == "a.example" else host
                return socket.getaddrinfo(found, port, **kinds)

            policy = UrlPolicy(hosts.format(port=outside.port), resolve=look_up)
            with pytest.raises(ImageError, match=r"private network|not among the hosts|user name|downloaded|circle"):
                openblip.load_image(f"http://a.example:{outside.port}/", allow_urls=policy)
            assert len(outside.requests) == 1
        assert inside.requests == []


def test_one_private_address_of_several_is_too_many_and_keys_of_clouds_are_never_asked_for() -> None:
    names = resolver(mixed_example=f"{OUTSIDE}+10.0.0.1", cloud_example="169.254.169.254")
    with pytest.raises(ImageError, match="in a private network"):
        openblip.load_image("http://mixed.example/", allow_urls=UrlPolicy("*", resolve=names))
    with pytest.raises(ImageError, match="where a cloud keeps its machines' keys"):
        openblip.load_image("http://cloud.example/", allow_urls=UrlPolicy("*", allow_private=True, resolve=names))


def test_private_hosts_can_be_allowed_by_name() -> None:
    with serving((GOOD, b"")) as server:
        policy = UrlPolicy(f"storage.internal:{server.port}", True, resolve=resolver(storage_internal="127.0.0.1"))
        assert openblip.load_image(f"http://storage.internal:{server.port}/a.png", allow_urls=policy).size == (8, 8)
        with pytest.raises(ImageError, match="not among the hosts"):
            openblip.load_image(server.url, allow_urls=policy)


def test_proxies_of_the_environment_are_not_told_what_a_service_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving((GOOD, b"")) as proxy, serving((GOOD, b""), address=OUTSIDE) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        policy = UrlPolicy("*")
        assert openblip.load_image(f"http://{OUTSIDE}:{server.port}/", allow_urls=policy).size == (8, 8)
        assert (proxy.requests, len(server.requests)) == ([], 1)
        through = UrlPolicy("*", use_proxies=True)
        assert openblip.load_image("http://127.0.0.2/a.png", allow_urls=through).size == (8, 8)
        assert proxy.requests[0].startswith(b"GET http://127.0.0.2/a.png HTTP/1.1")


def test_the_limits_are_those_of_the_policy() -> None:
    with serving((GOOD, b""), address=OUTSIDE) as server, pytest.raises(ImageError, match="larger than 50 bytes"):
        openblip.load_image(f"http://{OUTSIDE}:{server.port}/", allow_urls=UrlPolicy("*", max_bytes=50))
    slow = OK + b"Content-Length: 1000000\r\n\r\n", b"x"
    with serving(slow, address=OUTSIDE) as server, pytest.raises(ImageError, match=r"took longer than 0\.2 s|larger"):
        openblip.load_image(f"http://{OUTSIDE}:{server.port}/", allow_urls=UrlPolicy("*", total_s=0.2))


def test_hosts_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_ALLOW_URLS", "images.example.org, *.example.com")
    assert url_policy().hosts == ("images.example.org", "*.example.com")
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:1 is not among the hosts"):
        openblip.load_image("http://127.0.0.1:1/a.png")
    for value, hosts in {"0": (), "No": (), "1": ("*",), "": ("*",)}.items():
        monkeypatch.setenv("OPENBLIP_ALLOW_URLS", value)
        assert url_policy().hosts == hosts
        assert url_policy(True).hosts == ("*",) and url_policy(False).hosts == ()


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a.org", ["a.org:80", "a.org.:80"], ["a.org:8080", "b.a.org:80", "xa.org:80", "a.org.evil:80"]),
        ("A.org:8080", ["a.org:8080"], ["a.org:80"]),
        ("*.a.org", ["b.a.org:80", "c.b.a.org:80"], ["a.org:80", "xa.org:80", "b.a.org:81", ".a.org.x:80"]),
        ("bücher.example", ["xn--bcher-kva.example:80"], ["bucher.example:80"]),
        ("[2606:4700::1]:81", ["2606:4700::1:81"], ["2606:4700::1:80"]),
        ("*", ["a.org:1", "2606:4700::1:80"], []),
    ],
)
def test_patterns_of_hosts(pattern: str, yes: list[str], no: list[str]) -> None:
    hosts = UrlPolicy([pattern]).hosts
    for server in yes + no:
        host, _, port = server.rpartition(":")
        assert allows(hosts, host, int(port), 80) is (server in yes), server


@pytest.mark.parametrize(
    "wrong",
    [
        *({"hosts": host} for host in ["", "http://a.org", "a.org/x", "a@b", "*a.org", "a.*", ["a", 3], "a b"]),
        *({"max_bytes": number} for number in [0, -1, True, "1", float("nan")]),
        *({"total_s": 0}, {"silence_s": None}, {"allow_private": "yes"}, {"use_proxies": 1}),
    ],
)
def test_a_policy_is_checked_when_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"names no host|must be"):
        UrlPolicy(**{"hosts": "a.org", **wrong})


def test_a_policy_goes_to_other_processes_and_cannot_be_changed() -> None:
    policy = UrlPolicy(["a.org"], max_bytes=7)
    assert pickle.loads(pickle.dumps(policy)) == policy == UrlPolicy("a.org", max_bytes=7)
    assert hash(policy) == hash(UrlPolicy("a.org", max_bytes=7))
    with pytest.raises(AttributeError):
        policy.hosts = ("*",)  # type: ignore[misc]
