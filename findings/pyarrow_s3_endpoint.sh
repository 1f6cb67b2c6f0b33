#!/usr/bin/env bash
# pyarrow==26.0.1 (pyarrow.fs)
# AWS_ENDPOINT_URL, which botocore, the AWS CLI and Arrow's own `FileSystem.from_uri("s3://...")` follow, is ignored by
# the constructor `S3FileSystem(...)`, and so is AWS_ENDPOINT_URL_S3: the same object is asked for at Amazon's servers
# instead of one's own (MinIO, Ceph). The constructor needs `endpoint_override=`.
#
# Seen, requests that reached a server on this machine that both variables name:
#   from_uri 2   S3FileSystem 0   S3FileSystem with endpoint_override 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet pyarrow==26.0.1

venv/bin/python - <<'PYTHON'
import http.server
import os
import sys
import threading

from pyarrow import fs

requests: list[str] = []


class Store(http.server.BaseHTTPRequestHandler):
    """An empty bucket."""

    def do_HEAD(self) -> None:
        requests.append(self.path)
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
os.environ.update(AWS_ENDPOINT_URL=address, AWS_ENDPOINT_URL_S3=address)
os.environ.update(AWS_ACCESS_KEY_ID="someone", AWS_SECRET_ACCESS_KEY="something")
once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
# Nothing listens at this proxy: what would go to Amazon's servers does not leave the machine.
nowhere = {"proxy_options": "http://127.0.0.1:9", "region": "us-east-1", "retry_strategy": once}


def asked(system: fs.FileSystem) -> int:
    requests.clear()
    try:
        system.get_file_info("photos/a.jpg")
    except OSError:
        pass
    return len(requests)


by_address = asked(fs.FileSystem.from_uri("s3://photos/a.jpg?region=us-east-1")[0])
by_constructor = asked(fs.S3FileSystem(**nowhere))
overridden = asked(fs.S3FileSystem(region="us-east-1", endpoint_override=address, retry_strategy=once))
print(f"from_uri {by_address}   S3FileSystem {by_constructor}   S3FileSystem with endpoint_override {overridden}")
if not by_address or by_constructor or not overridden:
    sys.exit("the behaviour has changed")
PYTHON
