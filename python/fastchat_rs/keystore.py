"""Where API keys are kept: a JSON file or a SQLite database, as hashes with their limits. Knows no requests."""

import fcntl
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from fastchat_rs.errors import ConfigError

Count = Annotated[int, Meta(ge=1)]
Money = Annotated[float, Meta(gt=0)]
PREFIX = "fc"
_DATABASES = (".db", ".sqlite", ".sqlite3")
_NAME = re.compile(r"[\w .@/+-]{1,64}")
_BUSY_SECONDS = 5.0


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key. `None` is no limit; times are seconds since 1970; money is in the currency of the prices."""

    id: str
    name: str
    digest: str
    """BLAKE2b-256 of the whole key, hex. A made key holds 256 random bits, so a slow hash would add nothing."""
    created: float
    expires: float | None = None
    revoked: float | None = None
    models: list[str] = []
    """Names the key may use; empty = all."""
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    money_per_day: Money | None = None
    money_per_month: Money | None = None

    def valid(self, now: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    @property
    def state(self) -> str:
        """For people."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.valid(time.time()) else "expired"

    @property
    def budgeted(self) -> bool:
        """Whether something a day or a month bounds it."""
        return any((self.tokens_per_day, self.tokens_per_month, self.money_per_day, self.money_per_month))


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `add` may be told besides the name: the fields of the same names in `KeyRecord`."""

    expires: float | None = None
    models: list[str] = []
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    money_per_day: Money | None = None
    money_per_month: Money | None = None


def digest(key: str) -> str:
    """What is kept of a key."""
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=32).hexdigest()


class KeyStore(Protocol):
    """A place of keys that several processes may read and change."""

    def version(self) -> object:
        """Differs when the keys may have changed. Cheap."""
        ...

    def read(self) -> list[KeyRecord]:
        """All keys, revoked ones too."""
        ...

    def write(self, record: KeyRecord) -> None:
        """Adds a key, or replaces the one with its id."""
        ...


def open_store(path: Path, *, create: bool = False) -> KeyStore:
    """By the name's ending: .db, .sqlite and .sqlite3 are databases, everything else is a JSON file."""
    if not create and not path.exists():
        raise ConfigError(f"keys: {path} is not there; `fastchat-rs keys add NAME --keys {path}` makes it")
    return KeyDatabase(path) if is_database(path) else KeyFile(path)


def is_database(path: Path) -> bool:
    """By its ending."""
    return path.suffix in _DATABASES


def add(store: KeyStore, name: str, limits: KeyLimits) -> tuple[KeyRecord, str]:
    """Makes a key; its text is seen here and never again."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"keys: '{name}' is not a name of 1 to 64 letters, digits, blanks or .@/+-_")
    if any(record.name == name and record.revoked is None for record in store.read()):
        raise ConfigError(f"keys: there is a key named '{name}'; revoke it first or choose another name")
    id = secrets.token_hex(6)
    text = f"{PREFIX}-{id}-{secrets.token_urlsafe(32)}"
    record = KeyRecord(id=id, name=name, digest=digest(text), created=time.time(), **msgspec.structs.asdict(limits))
    store.write(record)
    return record, text


def revoke(store: KeyStore, which: str) -> KeyRecord:
    """By id or name."""
    for record in store.read():
        if which in (record.id, record.name) and record.revoked is None:
            revoked = msgspec.structs.replace(record, revoked=time.time())
            store.write(revoked)
            return revoked
    raise ConfigError(f"keys: no valid key has the id or name '{which}'")


class KeyFile:
    """A JSON array in a file that only its owner may read; replaced as a whole, writers take turns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def version(self) -> object:
        """Inode, size and time of change."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def read(self) -> list[KeyRecord]:
        """Checks every field."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[KeyRecord])
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"keys: cannot read {self._path}: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise ConfigError(f"keys: {self._path}: {error}") from error

    def write(self, record: KeyRecord) -> None:
        """Under a lock, through a second file."""
        with self._locked():
            records = [one for one in self.read() if one.id != record.id]
            text = msgspec.json.format(msgspec.json.encode([*records, record]), indent=1)
            draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
            try:
                with open(draft, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(self._path)
            except OSError as error:
                draft.unlink(missing_ok=True)
                raise ConfigError(f"keys: cannot write {self._path}: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        lock = self._path.with_name(f"{self._path.name}.lock")
        try:
            with open(lock, "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ConfigError(f"keys: cannot lock {lock}: {error.strerror}") from error


class KeyDatabase:
    """Table `keys` of a SQLite database; the ledger of budgets may live in the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            # SQLite would make it readable by all.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._watch = self._connect()
        with self._watch:
            self._watch.execute("CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, record BLOB NOT NULL)")

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.Error as error:
            raise ConfigError(f"keys: {self._path}: {error}") from error
        return connection

    def version(self) -> object:
        """SQLite's own counter of changes by others."""
        return self._watch.execute("PRAGMA data_version").fetchone()[0]

    def read(self) -> list[KeyRecord]:
        """Checks every field."""
        try:
            rows = self._watch.execute("SELECT record FROM keys ORDER BY rowid").fetchall()
            return [msgspec.json.decode(row[0], type=KeyRecord) for row in rows]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise ConfigError(f"keys: {self._path}: {error}") from error

    def write(self, record: KeyRecord) -> None:
        """One transaction, on a connection of its own so that `version` of this one changes too."""
        try:
            with closing(self._connect()) as connection, connection:
                connection.execute(
                    "INSERT INTO keys VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                    (record.id, msgspec.json.encode(record)),
                )
        except sqlite3.Error as error:
            raise ConfigError(f"keys: cannot write {self._path}: {error}") from error
