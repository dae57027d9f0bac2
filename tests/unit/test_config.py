"""Settings: one precedence, and errors that name the setting."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastchat_rs.cli import app
from fastchat_rs.config import EngineConfig, ServeConfig, load_config, parse_bytes
from fastchat_rs.errors import ConfigError


def test_command_line_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('model = "from-file"\nport = 1\nmax_n = 2\ndrain = 5\nalias = ["a"]\n')
    environment = {"FASTCHAT_PORT": "3", "FASTCHAT_MAX_N": "4", "FASTCHAT_ALIAS": "b, c", "FASTCHAT_ACCESS_LOG": "true"}
    config = load_config(ServeConfig, {"port": 9}, environment, file)
    assert (config.port, config.max_n, config.drain, config.heartbeat) == (9, 4, 5.0, 10.0)
    assert (config.model, config.alias, config.access_log) == ("from-file", ["b", "c"], True)


def test_the_file_may_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("port = 77\n")
    assert load_config(ServeConfig, {"model": "m"}, {"FASTCHAT_CONFIG": str(file)}).port == 77


def test_settings_of_other_commands_are_left_aside_in_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("port = 77\nthreads = 3\n")
    assert load_config(EngineConfig, {"model": "m"}, {"FASTCHAT_PORT": "x"}, file).threads == 3


@pytest.mark.parametrize(
    ("typed", "environment", "text", "named"),
    [
        ({}, {}, "", "no model given"),
        ({"model": "m", "port": 70000}, {}, "", "port"),
        ({"model": "m"}, {"FASTCHAT_PORT": "many"}, "", "FASTCHAT_PORT"),
        ({"model": "m"}, {}, "prot = 1", "prot"),
        ({"model": "m"}, {}, "port = 'x'", "port"),
        ({"model": "m"}, {}, "port = ", "settings.toml"),
        ({"model": "m", "kv_memory": "lots"}, {}, "", "kv_memory"),
        ({"model": "m", "kv_dtype": "int1"}, {}, "", "kv_dtype"),
        ({"model": "m", "dtype": "int8"}, {}, "", "dtype"),
        ({"model": "m", "host": "localhost"}, {}, "", "host"),
        ({"model": "m", "max_batch_tokens": 1}, {}, "", "max_batch_tokens"),
        ({"model": "m", "heartbeat": 0.0}, {}, "", "heartbeat"),
        ({"model": "m", "max_header": "8191B"}, {}, "", "max_header: '8191B' .* 8192"),
    ],
)
def test_errors_name_the_setting(
    typed: dict[str, Any], environment: dict[str, str], text: str, named: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_config(ServeConfig, typed, environment, file)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1.5KB", 1500), ("3k", 3000), ("1gb", 10**9), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "x") == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", "1 TiB", "1e3", "0.1B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="field"):
        parse_bytes(text, "field")


def test_help_shows_every_setting_and_the_precedence() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0
    for name in ServeConfig.__struct_fields__:
        assert (name if name in ("model", "more_models") else "--" + name.replace("_", "-")) in result.output
    assert "FASTCHAT_PORT" in result.output
    assert "TOML" in result.output


def test_the_command_line_only_names_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServeConfig] = []

    def serve(config: ServeConfig, announce: object) -> None:
        seen.append(config)

    monkeypatch.setattr("fastchat_rs.server.serve.serve", serve)
    arguments = ["serve", "m", "--alias", "a", "--alias", "b", "--no-prefix-caching", "--drain", "2"]
    result = CliRunner().invoke(app, arguments, env={"FASTCHAT_MAX_N": "3", "FASTCHAT_DRAIN": "9"})
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.model, config.alias, config.prefix_caching, config.drain) == ("m", ["a", "b"], False, 2.0)
    assert (config.max_n, config.port) == (3, 8000)
