"""An S3-compatible server that fails as they do, and a run that reads from it: `python -m tests.faults.remote SEED`.

The server is moto's; a proxy before it adds latency, answers 503, cuts bodies short, resets connections. Runs in a
process of its own, since Arrow keeps its connections, and prints one JSON object.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticLoader, ElasticMapper, ParquetSource, retry, skip

KEY, SECRET = "AKIAFAULTSFAULTS", "s3cr3t/which+nobody=may/see"
NUM_FILES, FILE_ROWS = 6, 400
SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)


class Proxy(ThreadingHTTPServer):
    """Hands requests on to the real server; while `is_bad`, three of ten go wrong in one of four ways."""

    daemon_threads = True

    def __init__(self, target: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.rng, self.lock = target, random.Random(seed), threading.Lock()
        self.is_bad, self.is_down, self.injected = False, False, Counter[str]()

    def draw(self) -> str:
        with self.lock:
            if self.is_down:
                fault = "503"
            else:
                fault = self.rng.choice(["latency", "503", "cut", "reset"]) if self.rng.random() < 0.3 else ""
            fault = fault if self.is_bad else ""
            self.injected[fault] += bool(fault)
            return fault

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what we are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.draw()
        if fault == "latency":
            time.sleep(0.02)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault == "503":
            self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self._answer(answer.status, answer.getheaders(), data, cut=fault == "cut")

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Not to be mixed with the result."""


def read_all(source: ParquetSource, **options: Any) -> tuple[list[int], Any]:
    """Row numbers through a stage, and its stats."""
    with ElasticLoader(ElasticMapper(source, source.reader(), 4, name="read", **options)) as loader:
        rows = [n for table in loader for n in table["n"].to_pylist()]
        return rows, loader.stats().stages[0]


def main(seed: int) -> dict[str, Any]:
    """Read under faults, and look for the secret in whatever was written meanwhile."""
    from moto.server import ThreadedMotoServer

    written = io.StringIO()
    logging.basicConfig(level=logging.DEBUG, stream=written, force=True)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # moto's own: it sees the headers it is sent
    real = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    real.start()
    proxy = Proxy(real.get_host_and_port()[1], seed)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    at = f"127.0.0.1:{proxy.server_address[1]}"
    once = fs.AwsStandardS3RetryStrategy(max_attempts=1)  # so that what fails comes to us
    common = {"access_key": KEY, "secret_key": SECRET, "scheme": "http", "region": "us-east-1"}
    direct = fs.S3FileSystem(**common, endpoint_override=f"127.0.0.1:{proxy.target}", allow_bucket_creation=True)
    direct.create_dir("clicks")
    for number in range(NUM_FILES):
        rows = list(range(number * FILE_ROWS, (number + 1) * FILE_ROWS))
        pq.write_table(pa.table({"n": rows}), f"clicks/{number}.parquet", filesystem=direct, row_group_size=100)
    s3 = fs.S3FileSystem(**common, endpoint_override=at, retry_strategy=once)
    source = ParquetSource("clicks", filesystem=s3)
    proxy.is_bad = True
    rows, stats = read_all(source, on_error=retry(40, 0.005))
    texts = [repr(stats), json.dumps(source.state_dict())]
    with tempfile.TemporaryDirectory() as folder:
        proxy.is_down = True
        quarantine = Path(folder) / "bad.jsonl"
        source.reset()
        none, _ = read_all(source, on_error=skip(max_share=1.0, quarantine=quarantine))
        lines = quarantine.read_text()
    texts.append(lines)
    quoted = SECRET.replace("/", "%2F")
    for paths in (
        f"s3://{KEY}:{quoted}@clicks/none.parquet?endpoint_override={at}&scheme=http&region=us-east-1",
        "clicks",
    ):
        try:
            ParquetSource(paths, filesystem=None if "://" in paths else s3)
        except (ConfigError, OSError) as error:
            texts.append(f"{error} {error!r}")
    proxy.shutdown()
    proxy.server_close()
    real.stop()
    texts.append(written.getvalue())
    return {
        "rows": rows,
        "retried": stats.num_retried,
        "injected": sum(proxy.injected.values()),
        "kinds": sorted(proxy.injected - Counter({"": 1})),
        "skipped_rows": len(none),
        "quarantined": len(lines.splitlines()),
        "is_secret_out": any(SECRET in text or SECRET.replace("/", "%2F") in text for text in texts),
        "texts": [text[:300] for text in texts],
    }


if __name__ == "__main__":
    os.environ.update(AWS_EC2_METADATA_DISABLED="true", RAY_USAGE_STATS_ENABLED="0")
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # Arrow's S3 may wait for connections that the proxy has cut
