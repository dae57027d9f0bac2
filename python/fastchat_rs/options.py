"""Turns the fields of a settings class into typer options, so that help, environment and file never disagree."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import typer
from msgspec import inspect as types

from fastchat_rs.config import ConfigT, is_list, load_config

_PLAIN: dict[type[types.Type], type] = {types.IntType: int, types.FloatType: float, types.BoolType: bool}


def with_settings(kind: type[ConfigT]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the fields of `kind` as options; it is called with the merged settings first."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]

        def run(**values: Any) -> None:
            typed = {name: values.pop(name) for name in fields}
            file = values.pop("config")
            command(load_config(kind, {n: v for n, v in typed.items() if v not in (None, [])}, file=file), **values)

        parameters = [*map(_parameter, fields.values()), _CONFIG]
        # The model comes first, then what the command alone has.
        parameters[1:1] = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        # typer reads the signature and the annotations; `run` takes whatever they say.
        setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return wrap


def _parameter(field: msgspec.structs.FieldInfo) -> inspect.Parameter:
    info = types.type_info(field.type)
    text = _description(info)
    if field.name == "model":
        annotation: Any = Annotated[str | None, typer.Argument(help=text, show_default=False)]
    elif field.name == "more_models":
        annotation = Annotated[list[str] | None, typer.Argument(help=text, show_default=False)]
    else:
        flag = "--" + field.name.replace("_", "-")
        if is_list(field.type):
            kind: Any = list[str] | None
        else:
            kind = _plain(info) | None
            if field.default not in (None, msgspec.NODEFAULT):
                text += f" [default: {str(field.default).lower() if kind == bool | None else field.default}]"
        names = [f"{flag}/--no-{flag[2:]}"] if kind == bool | None else [flag]
        annotation = Annotated[kind, typer.Option(*names, help=text, show_default=False)]
    return _keyword(field.name, annotation)


def _description(info: types.Type) -> str:
    extra: Any = cast(Any, info).extra_json_schema if isinstance(info, types.Metadata) else None
    return cast(str, extra["description"]) if extra else ""


def _plain(info: types.Type) -> type:
    if isinstance(info, types.Metadata):
        return _plain(info.type)
    if isinstance(info, types.UnionType):
        return _plain(next(one for one in info.types if not isinstance(one, types.NoneType)))
    return _PLAIN.get(type(info), str)


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_CONFIG = _keyword(
    "config", Annotated[Path | None, typer.Option(help="TOML file with settings, keys as the options with _ for -")]
)
