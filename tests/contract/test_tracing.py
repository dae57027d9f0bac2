"""Spans arrive at an OTLP endpoint, as children of the caller's."""

import importlib.util
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from live import serving

TRACE = "0af7651916cd43dd8448eb211c80319c"


class _Collector(BaseHTTPRequestHandler):
    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_request_becomes_a_span(demo_model: Path) -> None:
    if importlib.util.find_spec("opentelemetry") is None:
        print("SKIPPED: the otel extra is not installed", file=sys.stderr)
        pytest.skip("the otel extra is not installed")
    with HTTPServer(("127.0.0.1", 0), _Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        try:
            environment = {"OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
            options = ("--max-model-len", "512", "--otlp-endpoint", url)
            with serving(demo_model, *options, environment=environment) as live:
                headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "traced-1"}
                body = live.chat("a private prompt", max_tokens=3)
                assert live.post("/v1/chat/completions", body, headers=headers).status_code == 200
                # Leaving sends what waits.
                assert live.stop() == 0
            until = time.monotonic() + 10
            while not _Collector.received:
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            collector.shutdown()
            thread.join()
    sent = b"".join(_Collector.received)
    assert bytes.fromhex(TRACE) in sent and bytes.fromhex("b7ad6b7169203331") in sent
    for text in (b"POST /v1/chat/completions", b"traced-1", b"gen_ai.usage.output_tokens", b"fastchat_rs"):
        assert text in sent
    assert b"private" not in sent
