"""API keys: where they are kept, who is let in, and what the command line does with them."""

import json
import threading
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from fastchat_rs import keystore, ledger
from fastchat_rs.cli import app
from fastchat_rs.config import ServeConfig
from fastchat_rs.errors import ConfigError
from fastchat_rs.keystore import KeyLimits, open_store
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.keys import Keys

PLACES = ["keys.json", "keys.db"]


@pytest.mark.parametrize("place", PLACES)
def test_only_hashes_are_kept(place: str, tmp_path: Path) -> None:
    store = open_store(tmp_path / place, create=True)
    limits = KeyLimits(models=["demo"], requests_per_minute=5, tokens_per_day=100, money_per_month=1.5)
    record, text = keystore.add(store, "team a", limits)
    assert len(text) > 50
    for file in tmp_path.iterdir():
        assert text.split("-", 2)[2].encode() not in file.read_bytes()
        assert text.encode() not in file.read_bytes()
    assert (tmp_path / place).stat().st_mode & 0o077 == 0
    (read,) = open_store(tmp_path / place).read()
    assert read == record
    assert (read.models, read.requests_per_minute, read.money_per_month) == (["demo"], 5, 1.5)
    with pytest.raises(ConfigError, match="team a"):
        keystore.add(store, "team a", KeyLimits())


@pytest.mark.parametrize("place", PLACES)
def test_who_is_let_in(place: str, tmp_path: Path) -> None:
    store = open_store(tmp_path / place, create=True)
    first, key = keystore.add(store, "a", KeyLimits(models=["demo"]))
    _, late = keystore.add(store, "late", KeyLimits(expires=time.time() - 1))
    now = [0.0]
    keys = Keys(["from the settings"], open_store(tmp_path / place), clock=lambda: now[0])
    caller = keys.check(f"Bearer {key}")
    assert caller.record == first and caller.tenant == f"key-{first.id}"
    assert caller.may_use("demo") and not caller.may_use("other")
    assert keys.check("Bearer from the settings").record is None
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    for refused in (wrong, late, first.id, f"fc-{first.id}-", f"fc-{first.id}", first.digest, "", "fc--"):
        with pytest.raises(ApiError) as caught:
            keys.check(f"Bearer {refused}")
        assert caught.value.status == 401
    # Changes elsewhere count within seconds.
    keystore.revoke(store, "a")
    _, new = keystore.add(store, "b", KeyLimits())
    assert keys.check(f"Bearer {key}").record == first
    now[0] += 1.1
    with pytest.raises(ApiError, match="revoked"):
        keys.check(f"Bearer {key}")
    assert keys.check(f"Bearer {new}").tenant != caller.tenant


def test_a_damaged_file_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, key = keystore.add(open_store(path, create=True), "a", KeyLimits())
    now = [0.0]
    keys = Keys([], open_store(path), clock=lambda: now[0])
    path.write_text("[{")
    now[0] += 2
    assert keys.check(f"Bearer {key}").record is not None
    with pytest.raises(ConfigError, match=r"keys\.json"):
        Keys([], open_store(path))
    path.write_bytes(msgspec.json.encode([{"id": "x", "name": "n", "digest": "d", "created": 1, "limit": 3}]))
    with pytest.raises(ConfigError, match="limit"):
        open_store(path).read()


@pytest.mark.parametrize("place", PLACES)
def test_writers_take_turns(place: str, tmp_path: Path) -> None:
    open_store(tmp_path / place, create=True)

    def one(number: int) -> None:
        keystore.add(open_store(tmp_path / place, create=True), f"name {number}", KeyLimits())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record.name for record in open_store(tmp_path / place).read()} == {f"name {n}" for n in range(16)}


@pytest.mark.parametrize("place", PLACES)
def test_the_commands(place: str, tmp_path: Path) -> None:
    path = str(tmp_path / place)
    runner = CliRunner()
    made = runner.invoke(app, ["keys", "add", "team", "--keys", path, "--tokens-per-day", "500", "--model", "demo"])
    assert made.exit_code == 0, made.output
    key = made.stdout.split()[-1]
    assert key.startswith("fc-")
    listed = json.loads(runner.invoke(app, ["keys", "list", "--keys", path, "--json"]).stdout)
    assert [(one["name"], one["state"], one["tokens_per_day"], one["models"]) for one in listed] == [
        ("team", "valid", 500, ["demo"])
    ]
    assert "tokens_per_day 500" in runner.invoke(app, ["keys", "list", "--keys", path], env={"COLUMNS": "200"}).stdout
    book = ledger.Ledger(ledger.path_of(Path(path), None), "test")
    book.settle([ledger.Entry(listed[0]["id"], "demo", "2026-01-02", 7, 5, 12_000)])
    used = json.loads(runner.invoke(app, ["keys", "usage", "--keys", path, "--json"]).stdout)
    assert used[0]["name"] == "team" and (used[0]["prompt"], used[0]["completion"]) == (7, 5)
    assert used[0]["money"] == pytest.approx(0.000012)
    assert "2026-01-02" in runner.invoke(app, ["keys", "usage", "--keys", path]).stdout
    assert runner.invoke(app, ["keys", "revoke", "team", "--keys", path]).exit_code == 0
    listed = json.loads(runner.invoke(app, ["keys", "list", "--keys", path, "--json"]).stdout)
    assert listed[0]["state"] == "revoked"
    book.close()


def test_other_addresses_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2"):
        with pytest.raises(ConfigError, match="insecure"):
            ServeConfig(model="m", host=host)
        ServeConfig(model="m", host=host, insecure=True)
        ServeConfig(model="m", host=host, keys="keys.json")
        ServeConfig(model="m", host=host, api_key=["k"])
    ServeConfig(model="m", host="::1")
    with pytest.raises(ConfigError, match="api_key"):
        ServeConfig(model="m", api_key=[""])


@pytest.mark.parametrize("price", ["demo", "demo=1", "=1/2", "demo=a/b", "demo=-1/2"])
def test_a_price_that_is_none(price: str) -> None:
    with pytest.raises(ConfigError, match="price"):
        ServeConfig(model="m", price=[price])
