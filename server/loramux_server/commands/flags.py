"""Command-line flags derived from the fields of a config."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import typer
from typer.core import TyperCommand

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_METAVARS = {int: "N", float: "SECONDS", str: "TEXT", list[str]: "TEXT"}
_CHOICES = re.compile(r"\^\(([a-z0-9|]+)\)\$")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that `text` means: a number, or one with K, M, G or T (powers of 1024).

    Raises:
        typer.BadParameter: `text` is no size.
    """
    found = _SIZE.fullmatch(str(text).strip())
    if not found:
        raise typer.BadParameter(
            f"{text!r} is not a size; expected bytes, or a number with K, M, G or T"
        )
    return int(float(found[1]) * (1 << _UNITS[found[2].upper()]))


def show_size(size: int) -> str:
    """Return `size` in the largest unit that divides it."""
    for unit, shift in reversed(_UNITS.items()):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


class HeadedCommand(TyperCommand):
    """A command whose help groups options under headings, by their `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write all options."""
        parts: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                heading = getattr(param, "rich_help_panel", None) or "Other"
                parts.setdefault(heading, []).append(record)
        for heading, records in parts.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def takes_config(
    config: type[msgspec.Struct],
    headings: Mapping[str, Iterable[str]],
    metavars: Mapping[str, str],
) -> Callable[[Callable[[dict[str, object]], None]], Callable[..., None]]:
    """Return a decorator for a command with a flag for each field of `config`.

    The decorated function receives the values as a dict.

    Args:
        config: The config whose fields become flags.
        headings: Heading -> the fields below it in the help of a `HeadedCommand`; each has one.
        metavars: Field -> placeholder for its value in the help, where its type implies none.
    """

    def decorate(command: Callable[[dict[str, object]], None]) -> Callable[..., None]:
        def run(**settings: object) -> None:
            command(settings)

        fields = {field.name: field for field in msgspec.structs.fields(config)}
        parameters = [
            _parameter(fields[name], config, heading, metavars.get(name))
            for heading, names in headings.items()
            for name in names
        ]
        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(
    field: msgspec.structs.FieldInfo,
    config: type[msgspec.Struct],
    heading: str,
    metavar: str | None,
) -> inspect.Parameter:
    hint = get_type_hints(config, include_extras=True)[field.name]
    assert get_origin(hint) is Annotated
    kind, meta = get_args(hint)[:2]
    flag = f"--{field.name.replace('_', '-')}"
    if kind is bool:
        flag += f"/--no-{flag.removeprefix('--')}"
    details: dict[str, Any] = {"help": meta.description, "rich_help_panel": heading}
    if get_origin(kind) is tuple:  # typer takes a tuple to have a fixed length
        kind = list[str]
    default = inspect.Parameter.empty if field.required else field.default
    schema = meta.extra_json_schema or {}
    if schema.get("format") == "bytes":
        details |= {"parser": parse_size, "metavar": "SIZE"}
        default = show_size(field.default)
    elif found := _CHOICES.fullmatch(meta.pattern or ""):
        details["metavar"] = found[1]
    elif kind is not bool:
        details["metavar"] = metavar or _METAVARS[kind]
    if word := schema.get("zero"):
        details["parser"] = _or_zero(word, details.get("parser", int))
        details["metavar"] = f"{details.get('metavar', _METAVARS[int])}|{word}"
        default = default if field.default else word
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(flag, **details)],
    )


def _or_zero(word: str, parse: Callable[[str], int]) -> Callable[[str], int]:
    """Return a parser like `parse` that also accepts `word`, as 0."""
    return lambda text: 0 if text == word else parse(text)
