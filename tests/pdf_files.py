"""PDFs written by hand, with what writers of images leave out: turned and cropped pages, forms, encryption."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
"""What passwords are filled up with (ISO 32000-1, 7.6.3.3)."""
RED_BOX = b"1 0 0 rg 0 0 50 100 re f"
"""The left half of a page of 100 x 100 points."""


def pdf_of(
    page_entries: Sequence[bytes], *, catalog: bytes = b"", more: Sequence[bytes] = (), password: str = ""
) -> bytes:
    """A PDF whose pages, of 100 x 100 points, are red in their left half.

    Args:
        page_entries: of each page, in addition to the usual ones, such as /Rotate 90.
        catalog: further entries of the catalogue.
        more: objects that others refer to: the first has the number 4.
        password: encrypts it, with RC4 and a key of 40 bits.
    """
    identity = b"0123456789abcdef"
    key = _key(password, identity) if password else b""
    red = _stream(RED_BOX, key, 3)
    pages = []
    first = 4 + len(more)
    for entries in page_entries:
        box = b"" if b"/MediaBox" in entries else b"/MediaBox [0 0 100 100] "
        pages.append(b"<< /Type /Page /Parent 2 0 R /Contents 3 0 R /Resources << >> " + box + entries + b" >>")
    kids = b" ".join(b"%d 0 R" % (first + number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R " + catalog + b" >>",
        b"<< /Type /Pages /Count %d /Kids [ %b ] >>" % (len(pages), kids),
        red,
        *more,
        *pages,
    ]
    trailer = b"/Size %d /Root 1 0 R" % (len(objects) + 1)
    if password:
        lock = _rc4(key, PADDING)
        owner = _rc4(hashlib.md5(_padded(password)).digest()[:5], _padded(password))
        trailer += b" /ID [<%b> <%b>]" % ((identity.hex().encode(),) * 2)
        trailer += b" /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%b> /U <%b> >>" % (
            owner.hex().encode(),
            lock.hex().encode(),
        )
    return _file(objects, trailer)


def stream_of(content: bytes, entries: bytes = b"") -> bytes:
    """A stream as an object."""
    return b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(content), entries, content)


def _file(objects: Sequence[bytes], trailer: bytes) -> bytes:
    content, places = b"%PDF-1.6\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<< %b >>\nstartxref\n%d\n%%%%EOF\n"
    return content + end % (len(objects) + 1, table, trailer, len(content))


def _stream(content: bytes, key: bytes, number: int) -> bytes:
    if key:  # each object has a key of its own
        own = hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[:10]
        content = _rc4(own, content)
    return stream_of(content)


def _padded(password: str) -> bytes:
    return (password.encode("latin-1") + PADDING)[:32]


def _key(password: str, identity: bytes) -> bytes:
    owner = _rc4(hashlib.md5(_padded(password)).digest()[:5], _padded(password))
    rights = (-4).to_bytes(4, "little", signed=True)
    return hashlib.md5(_padded(password) + owner + rights + identity).digest()[:5]


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
