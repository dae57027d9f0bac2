"""Where pictures may be fetched from: every disguise of a private address, redirects, sizes and slowness."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastchat_rs.server.fetch import FetchLimits, FetchRefusedError, ImageFetcher, is_public

PLACE = "messages.0.content.0.image_url.url"


class Handler(BaseHTTPRequestHandler):
    """A host that redirects, sends too much, or never ends."""

    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(f"{self.headers['Host']}{self.path}")
        if self.path == "/good.png":
            self.reply(b"picture")
        elif self.path == "/big":
            self.reply(b"x" * 5000)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(1000):
                    self.wfile.write(b"x" * 100)
            except OSError:
                pass
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            threading.Event().wait(3)
        elif self.path.startswith("/to/"):
            self.send_response(302)
            port = self.headers["Host"].rpartition(":")[2]
            self.send_header("Location", self.path.removeprefix("/to/").replace("PORT", port))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_error(404)

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Handler.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def fetch(
    url: str, domains: tuple[str, ...] = ("pictures.example", "*.cdn.example"), open_to_all: bool = True
) -> bytes:
    """With a resolver for which every host is this machine, which counts as public when `open_to_all`."""

    def public(address: str) -> bool:
        return open_to_all or is_public(address)

    limits = FetchLimits(bytes=1000, seconds=1.0)
    fetcher = ImageFetcher(domains, limits, resolver=lambda host, port: ["127.0.0.1"], public=public)
    return asyncio.run(fetcher.fetch(url, PLACE))


def test_allowed_domains_are_fetched_from(port: int) -> None:
    assert fetch(f"http://pictures.example:{port}/good.png") == b"picture"
    assert fetch(f"http://PICTURES.example.:{port}/good.png") == b"picture"
    assert fetch(f"http://pictures.example:{port}/to//good.png") == b"picture"
    assert fetch(f"http://pictures.example:{port}/to/http://x.cdn.example:PORT/good.png") == b"picture"
    assert f"x.cdn.example:{port}/good.png" in Handler.seen


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/big", "5000 bytes; at most 1000"),
        ("/endless", "more than 1000 bytes"),
        ("/none", "status 404"),
        ("/to/http://evil.example:PORT/good.png", "not among the domains"),
        ("/to/http://127.0.0.1:PORT/good.png", "must be a domain name"),
        ("/to/file:///etc/passwd", "the scheme must be"),
        ("/to//to//to//to//to//good.png", "more than 3 redirects"),
    ],
)
def test_what_leads_astray_is_refused(port: int, path: str, words: str) -> None:
    with pytest.raises(FetchRefusedError, match=words):
        fetch(f"http://pictures.example:{port}{path}")


def test_slow_hosts_are_left(port: int) -> None:
    with pytest.raises(FetchRefusedError):
        fetch(f"http://pictures.example:{port}/slow")


def test_domains_that_lead_to_private_addresses_are_not_connected_to(port: int) -> None:
    with pytest.raises(FetchRefusedError, match="open internet"):
        fetch(f"http://pictures.example:{port}/good.png", open_to_all=False)
    assert Handler.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example.evil.example/x",
        "http://evilpictures.example/x",
        "http://cdn.example/x",
        "http://user@pictures.example/x",
        "http://user:word@pictures.example/x",
        "http://evil.example@pictures.example/x",
        "http://pictures.example\\@evil.example/x",
        "http://pictures.example:99999/x",
        "http://pictures.example:port/x",
        "http://127.0.0.1/x",
        "http://[::1]/x",
        "http://2130706433/x",
        "http://0x7f.1/x",
        "http://127.1/x",
        "http://0177.0.0.1/x",
        "http://localhost/x",
        "http:///x",
        "http://pictures.example/x\r\nHost: evil.example",
        "http://pictures.example/\u00e9",
        "https://p\u0456ctures.example/x",
        "gopher://pictures.example/x",
        "//pictures.example/x",
        "http://pictures.example/" + "x" * 3000,
    ],
)
def test_urls_in_disguise_are_refused(url: str) -> None:
    with pytest.raises(FetchRefusedError):
        fetch(url)


def test_nothing_is_fetched_unless_domains_are_named() -> None:
    with pytest.raises(FetchRefusedError, match="fetches no pictures"):
        asyncio.run(ImageFetcher().fetch("https://pictures.example/x.png", PLACE))


def test_public_addresses() -> None:
    assert all(map(is_public, ("8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8")))
    private = (
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::1", "255.255.255.255", "240.0.0.1"),
    )
    assert not any(map(is_public, private))
