"""Fetches pictures by URL, from domains the operator allows and from public addresses only.

One parse of the URL decides everything: the host that is checked is the host that is resolved, and the address that is
checked is the address that is connected to. Redirects walk the same way again. No other scheme, no credentials.
"""

import asyncio
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+")
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_MAX_URL = 2048
_CHUNK = 64 * 1024

Resolver = Callable[[str, int], list[str]]


class FetchRefusedError(Exception):
    """Why a picture was not fetched; one line for the client."""


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of one picture."""

    bytes: int = 16 * 1024 * 1024
    seconds: float = 10.0


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address belongs to the open internet, also when it is wrapped in another."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        # The NAT64 prefixes lead to IPv4 addresses of any kind.
        if ip in ipaddress.ip_network("64:ff9b::/96") or ip in ipaddress.ip_network("64:ff9b:1::/48"):
            return False
    return ip.is_global and not ip.is_multicast


class ImageFetcher:
    """`domains`: hosts, or `*.` and a domain for all hosts below it."""

    def __init__(
        self,
        domains: Sequence[str] = (),
        limits: FetchLimits = FetchLimits(),
        resolver: Resolver = resolve,
        public: Callable[[str], bool] = is_public,
    ) -> None:
        self._domains = [domain.strip().lower().rstrip(".") for domain in domains]
        self._limits = limits
        self._resolve = resolver
        self._public = public
        self._context: ssl.SSLContext | None = None

    async def fetch(self, url: str, place: str) -> bytes:
        """The bytes at `url`."""
        if not self._domains:
            raise FetchRefusedError(
                f"{place}: this server fetches no pictures; send a data URL (data:image/png;base64,...)"
            )
        # Before a thread is taken.
        self._checked(url, place)
        return await asyncio.to_thread(self._walk, url, place)

    def _checked(self, url: str, place: str) -> SplitResult:
        if len(url) > _MAX_URL or any(not 0x21 <= ord(c) <= 0x7E or c in '\\"<>^`{|}' for c in url):
            raise FetchRefusedError(f"{place}: not a plain URL of at most {_MAX_URL} characters")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise FetchRefusedError(f"{place}: not a URL") from None
        if parts.scheme not in ("http", "https"):
            raise FetchRefusedError(f"{place}: the scheme must be data, https or http")
        if "@" in parts.netloc:
            raise FetchRefusedError(f"{place}: a URL with credentials")
        host = (parts.hostname or "").rstrip(".")
        # A last label of digits is a number in disguise (127.1, 0x7f.1), never a domain.
        if _HOST.fullmatch(host) is None or re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)", host.rpartition(".")[2]):
            raise FetchRefusedError(f"{place}: the host must be a domain name")
        if not any(self._allows(domain, host) for domain in self._domains):
            raise FetchRefusedError(f"{place}: '{host}' is not among the domains this server fetches pictures from")
        return parts

    @staticmethod
    def _allows(domain: str, host: str) -> bool:
        return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain

    def _walk(self, url: str, place: str) -> bytes:
        deadline = time.monotonic() + self._limits.seconds
        for _ in range(_MAX_REDIRECTS + 1):
            parts = self._checked(url, place)
            try:
                found = self._get(parts, place, deadline)
            except (OSError, http.client.HTTPException) as error:
                raise FetchRefusedError(
                    f"{place}: the picture could not be fetched ({type(error).__name__})"
                ) from error
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise FetchRefusedError(f"{place}: more than {_MAX_REDIRECTS} redirects")

    def _get(self, parts: SplitResult, place: str, deadline: float) -> bytes | str:
        """The body, or where a redirect leads."""
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = self._resolve(host, port)
        if not addresses or not all(self._public(address) for address in addresses):
            raise FetchRefusedError(f"{place}: '{host}' does not lead to the open internet")
        connection = http.client.HTTPConnection(host, port, timeout=self._left(deadline, place))
        with contextlib.closing(connection):
            # Connected here, to the address that was checked; http.client only speaks over it.
            connection.sock = self._connect(addresses[0], host, parts.scheme, port, self._left(deadline, place))
            # A host that sends a byte now and then must not hold a thread past the deadline.
            cut = threading.Timer(self._left(deadline, place), _shut, [connection.sock])
            cut.daemon = True
            cut.start()
            try:
                return self._answer(connection, parts, place, deadline)
            finally:
                cut.cancel()

    def _answer(
        self, connection: http.client.HTTPConnection, parts: SplitResult, place: str, deadline: float
    ) -> bytes | str:
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "fastchat-rs"})
        with contextlib.closing(connection.getresponse()) as response:
            if response.status in _REDIRECTS:
                return response.getheader("Location") or ""
            if response.status != 200:
                raise FetchRefusedError(f"{place}: the host answered with status {response.status}")
            return self._body(connection, response, place, deadline)

    def _body(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, place: str, deadline: float
    ) -> bytes:
        most = self._limits.bytes
        if (response.length or 0) > most:
            raise FetchRefusedError(f"{place}: a picture of {response.length} bytes; at most {most}")
        body = bytearray()
        while True:
            if connection.sock is not None:
                connection.sock.settimeout(self._left(deadline, place))
            chunk = response.read1(_CHUNK)
            if not chunk:
                # What the timer cut off must not pass for the whole.
                self._left(deadline, place)
                return bytes(body)
            body += chunk
            if len(body) > most:
                raise FetchRefusedError(f"{place}: a picture of more than {most} bytes")

    def _left(self, deadline: float, place: str) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise FetchRefusedError(f"{place}: fetching took longer than {self._limits.seconds:g} s")
        return left

    def _connect(self, address: str, host: str, scheme: str, port: int, timeout: float) -> socket.socket:
        plain = socket.create_connection((address, port), timeout)
        if scheme == "http":
            return plain
        try:
            self._context = self._context or ssl.create_default_context()
            return self._context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
