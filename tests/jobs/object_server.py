"""A small server that speaks S3's language over HTTP, as far as Arrow does: objects in memory, and no keys."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class ObjectServer(ThreadingHTTPServer):
    """Attributes: objects, by bucket/key; requests: a line of each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.times: dict[str, float] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, path: str, content: bytes) -> None:
        with self.lock:
            self.objects[path] = content
            self.times[path] = time.time()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectServer

    def log_message(self, *_: object) -> None:
        self.server.requests.append(self.requestline)

    def _split(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        return unquote(parts.path).strip("/" if "/" not in parts.path.strip("/") else "").lstrip("/"), {
            name: values[0] for name, values in query.items()
        }

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = _from_chunks(self.rfile)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # In pieces once more, with a checksum behind the last one.
        return _from_chunks(io.BytesIO(content)) if "x-amz-decoded-content-length" in self.headers else content

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", None) or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self) -> None:
        self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, query = self._split()
        if "/" not in path:
            return self._list(path, query)
        content = self.server.objects.get(path)
        if content is None:
            return self._missing()
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        modified = formatdate(self.server.times[path], usegmt=True)
        size = len(content)
        wanted = self.headers.get("Range")
        headers = {"ETag": tag, "Last_Modified": modified}
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(size, int(last) + 1 if last else size)
            headers["Content_Range"] = f"bytes {start}-{stop - 1}/{size}"
            return self._answer(206, content[start:stop], **headers)
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys = sorted(path.partition("/")[2] for path in list(self.server.objects) if path.startswith(f"{bucket}/"))
        found, folders = "", dict[str, None]()
        count = 0
        for key in keys:
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
                continue
            path = f"{bucket}/{key}"
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.server.times[path]))
            found += (
                f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[path])}</Size>"
                f"<LastModified>{modified}</LastModified><ETag>&quot;0&quot;</ETag></Contents>"
            )
            count += 1
        found += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        text = (
            f'<ListBucketResult xmlns="{NAMESPACE[1:-1]}"><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>'
            f"<KeyCount>{count + len(folders)}</KeyCount><MaxKeys>100000</MaxKeys><IsTruncated>false</IsTruncated>"
            f"{found}</ListBucketResult>"
        )
        self._answer(200, text.encode(), Content_Type="application/xml")

    def do_PUT(self) -> None:
        path, query = self._split()
        content = self._body()
        if "uploadId" in query:
            with self.server.lock:
                self.server.parts[query["uploadId"]][int(query["partNumber"])] = content
        elif "/" in path:
            self.server.put(path, content)
        self._answer(200, ETag='"0"')

    def do_POST(self) -> None:
        path, query = self._split()
        content = self._body()
        if "uploads" in query:
            key = f"upload{len(self.server.parts)}"
            with self.server.lock:
                self.server.parts[key] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{key}</UploadId></InitiateMultipartUploadResult>"
        elif "uploadId" in query:
            parts = self.server.parts.pop(query["uploadId"])
            self.server.put(path, b"".join(parts[number] for number in sorted(parts)))
            text = "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>"
        else:
            for key in ElementTree.fromstring(content).iter():
                if key.tag.rpartition("}")[2] == "Key":
                    self.server.objects.pop(f"{path.strip('/')}/{key.text}", None)
            text = "<DeleteResult></DeleteResult>"
        self._answer(200, text.encode(), Content_Type="application/xml")

    def do_DELETE(self) -> None:
        path, query = self._split()
        self.server.parts.pop(query.get("uploadId", ""), None)
        self.server.objects.pop(path, None)
        self._answer(204)


def _from_chunks(file: IO[bytes]) -> bytes:
    content = b""
    while size := int(file.readline().split(b";")[0], 16):
        content += file.read(size)
        file.readline()
    while file.readline().strip():
        pass
    return content


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
