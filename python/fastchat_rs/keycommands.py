"""The commands `fastchat-rs keys ...`: make, list and revoke API keys, and show what they used."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fastchat_rs.errors import ConfigError

if TYPE_CHECKING:
    from fastchat_rs.keystore import KeyRecord

app = typer.Typer(help="API keys and their usage.", no_args_is_help=True, rich_markup_mode=None)
Store = Annotated[
    Path, typer.Option("--keys", envvar="FASTCHAT_KEYS", help="JSON file, or SQLite database (.db) of the keys")
]
UsageDb = Annotated[
    Path | None, typer.Option(envvar="FASTCHAT_USAGE_DB", help="Database of the usage (default: beside the keys)")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table")]
Number = Annotated[int | None, typer.Option(min=1, show_default=False)]
Money = Annotated[float | None, typer.Option(min=0.000001, show_default=False)]


@app.command()
def add(  # noqa: PLR0913 - each is an option of the command
    name: Annotated[str, typer.Argument(help="Who has the key", show_default=False)],
    keys: Store,
    days: Annotated[float | None, typer.Option(min=0.0001, help="Days until it expires (default: never)")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may use; may be repeated; none = all")] = None,
    requests_per_minute: Number = None,
    tokens_per_minute: Number = None,
    max_concurrent: Number = None,
    tokens_per_day: Number = None,
    tokens_per_month: Number = None,
    money_per_day: Money = None,
    money_per_month: Money = None,
) -> None:
    """Make a key for NAME. It is printed once; the store keeps a hash. Money is in the currency of `serve --price`."""
    from fastchat_rs import keystore

    limits = keystore.KeyLimits(
        expires=None if days is None else time.time() + days * 86400,
        models=model or [],
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
        money_per_day=money_per_day,
        money_per_month=money_per_month,
    )
    record, text = keystore.add(keystore.open_store(keys, create=True), name, limits)
    print(f"fastchat-rs: key {record.id} of {record.name}; it is shown only now:", file=sys.stderr)
    print(text)


@app.command(name="list")
def list_keys(keys: Store, as_json: AsJson = False) -> None:
    """Show all keys with their limits. The keys themselves are not kept."""
    from rich.console import Console
    from rich.table import Table

    from fastchat_rs import keystore, ledger

    rows = [(record, _limits(record)) for record in keystore.open_store(keys).read()]
    if as_json:
        found = [{"id": r.id, "name": r.name, "state": r.state, "created": r.created, **limits} for r, limits in rows]
        print(json.dumps(found, indent=1))
        return
    table = Table("id", "name", "state", "created", "limits")
    for record, limits in rows:
        shown = ", ".join(f"{name} {value}" for name, value in limits.items()) or "none"
        table.add_row(record.id, record.name, record.state, ledger.today(record.created), shown)
    Console().print(table)


@app.command()
def revoke(which: Annotated[str, typer.Argument(help="Id or name", show_default=False)], keys: Store) -> None:
    """End a key. Running servers refuse it within a second or two."""
    from fastchat_rs import keystore

    record = keystore.revoke(keystore.open_store(keys), which)
    print(f"fastchat-rs: key {record.id} of {record.name} is revoked")


@app.command()
def usage(keys: Store, usage_db: UsageDb = None, as_json: AsJson = False) -> None:
    """Show what each key used, by day and model."""
    from rich.console import Console
    from rich.table import Table

    from fastchat_rs import keystore, ledger

    names = {record.id: record.name for record in keystore.open_store(keys).read()}
    path = ledger.path_of(keys, usage_db)
    if not path.exists():
        raise ConfigError(f"usage_db: {path} is not there; a server with --keys makes it")
    rows = ledger.read(path)
    if as_json:
        shown = [
            {
                **msgspec.to_builtins(row),
                "name": names.get(row.key, row.key),
                "money": row.money / ledger.UNITS,
            }
            for row in rows
        ]
        print(json.dumps(shown, indent=1))
        return
    table = Table("day", "name", "model")
    for column in ("requests", "prompt tokens", "completion tokens", "money"):
        table.add_column(column, justify="right")
    for row in rows:
        counts = (f"{row.requests:,}", f"{row.prompt:,}", f"{row.completion:,}", f"{row.money / ledger.UNITS:.6f}")
        table.add_row(row.day, names.get(row.key, row.key), row.model, *counts)
    Console().print(table)


def _limits(record: "KeyRecord") -> dict[str, object]:
    from fastchat_rs import keystore

    found = {name: getattr(record, name) for name in keystore.KeyLimits.__struct_fields__}
    return {name: value for name, value in found.items() if value not in (None, [])}
