"""OpenTelemetry, an extra: one span per request, a child of the caller's when it sent a traceparent. No prompts."""
# The extra may not be installed where types are checked.
# pyright: basic, reportMissingImports=false

import time
from typing import Any

from fastchat_rs.errors import ConfigError
from fastchat_rs.server.http import Request


class Tracer:
    """Sends spans in the background to an OTLP endpoint over HTTP."""

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(f"otlp_endpoint: {error}; it needs `pip install fastchat-rs[otel]`") from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": "fastchat_rs"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("fastchat_rs")
        self._kind = SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    def record(self, request: Request, route: str) -> None:
        """A request that is over."""
        ended = time.time_ns()
        carrier = {name: request.header(name) for name in ("traceparent", "tracestate")}
        attributes: dict[str, Any] = {
            "http.request.method": request.scope.method,
            "http.route": route,
            "http.response.status_code": request.status,
            "fastchat.request_id": request.id,
            "gen_ai.usage.input_tokens": request.tokens[0],
            "gen_ai.usage.output_tokens": request.tokens[1],
        }
        span = self._tracer.start_span(
            f"{request.scope.method} {route}",
            context=self._propagator.extract(carrier),
            kind=self._kind,
            attributes=attributes,
            start_time=ended - int((time.monotonic() - request.started) * 1e9),
        )
        span.end(ended)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()
