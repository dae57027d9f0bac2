"""API keys: who may call. Later the place of per-key limits and budgets."""

import hmac
from collections.abc import Iterable
from hashlib import blake2b

from fastchat_rs.server.http import ApiError


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=32).digest()


class Keys:
    """The configured keys, kept as hashes. With none, everybody may call."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str) -> str | None:
        """The caller's name for cache salts (None when there is but one), or 401."""
        if not self._digests:
            return None
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        # Every key is compared, in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            error = ApiError(401, "A valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
            error.headers.append(("www-authenticate", "Bearer"))
            raise error
        return given.hex()[:16] if len(self._digests) > 1 else None
