"""API keys: who calls. What a caller may then use is in accounts.py."""

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastchat_rs.errors import ConfigError
from fastchat_rs.keystore import PREFIX, KeyRecord, KeyStore, digest
from fastchat_rs.server.api_error import ApiError

log = logging.getLogger("fastchat_rs")

# Keys that are revoked or added elsewhere count from then on.
_LOOK_SECONDS = 1.0
# Compared with when nobody has the id that was given, so that both take the same time.
_NOBODY = digest("")


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    tenant: str | None = None
    """For cache salts: callers of different tenants share nothing. None when there is but one."""
    record: KeyRecord | None = None
    """The key's limits; None for keys of the settings and when no key is needed."""

    def may_use(self, model: str) -> bool:
        """Whether the key allows the name."""
        return self.record is None or not self.record.models or model in self.record.models


class Keys:
    """Keys of the settings, which have no limits, and of a store. With neither, everybody may call."""

    def __init__(
        self, keys: Iterable[str], store: KeyStore | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._digests = [digest(key) for key in keys]
        self._store = store
        self._clock = clock
        self._stored: dict[str, KeyRecord] = {}
        self._version: object = object()
        self._looked = float("-inf")
        if store is not None:
            self._stored, self._version = {record.id: record for record in store.read()}, store.version()

    @property
    def needed(self) -> bool:
        """Whether callers need a key."""
        return bool(self._digests) or self._store is not None

    def check(self, authorization: str) -> Caller:
        """The caller, or 401."""
        if not self.needed:
            return Caller()
        self._look()
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        given = digest(key)
        # Every comparison is made, in constant time, so that the time tells nothing about a secret.
        known = [hmac.compare_digest(given, one) for one in self._digests]
        record = self._stored.get(_id_of(key))
        stored = hmac.compare_digest(given, record.digest if record else _NOBODY) and record is not None
        if scheme.lower() != "bearer" or not (any(known) or stored):
            raise _unauthorized("A valid API key is needed: Authorization: Bearer KEY")
        if record is not None and stored:
            if not record.valid(time.time()):
                raise _unauthorized(f"This API key is {record.state}")
            return Caller(f"key-{record.id}", record)
        return Caller(given[:16] if len(self._digests) > 1 or self._store is not None else None)

    def _look(self) -> None:
        now = self._clock()
        if self._store is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            version = self._store.version()
            if version != self._version:
                self._stored = {record.id: record for record in self._store.read()}
                self._version = version
        except (ConfigError, OSError) as error:
            # The keys known before stay; nobody is let in or locked out by a damaged file.
            log.error("%s; the keys read before are kept", error)


def _id_of(key: str) -> str:
    prefix, _, rest = key.partition("-")
    return rest.partition("-")[0] if prefix == PREFIX else ""


def _unauthorized(message: str) -> ApiError:
    error = ApiError(401, message, code="invalid_api_key")
    error.headers.append(("www-authenticate", "Bearer"))
    return error
