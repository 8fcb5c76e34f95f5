"""Command-line flags made from a settings dataclass, with vLLM's habits."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class FlagParser(argparse.ArgumentParser):
    """Takes `--a-flag X`, `--a-flag=X` and `--a_flag=X`; booleans also as `--flag`, `--no-flag`, `--flag=false`.

    An unknown flag is an error that names the nearest one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._booleans: set[str] = set()

    def add_settings(self, settings: type, *, skip: Sequence[str] = ()) -> None:
        """One flag for each field of a dataclass whose fields were made by `config.setting`."""
        hints = typing.get_type_hints(settings)
        group = self.add_argument_group(_title(settings))
        for f in dataclasses.fields(settings):
            if f.name in skip:
                continue
            flag, kind = flag_name(f.name), _plain_type(hints[f.name])
            text = f.metadata["help"] + ("" if f.default in (None, "", ()) else f" (default: {_shown(f.default)})")
            if "only" in f.metadata:
                text += "; not supported yet"
            options: dict[str, Any] = {"dest": f.name, "default": f.default, "help": text.replace("%", "%%")}
            if kind is bool:
                self._booleans.add(flag)
                group.add_argument(flag, type=_boolean, metavar="{true,false}", **options)
            elif kind is tuple:
                if f.metadata.get("repeatable"):
                    options |= {"action": "extend", "default": None}  # else it would add to the default
                group.add_argument(flag, nargs="+", metavar="VALUE", **options)
            else:
                choices = f.metadata["choices"]
                group.add_argument(
                    flag, type=kind, choices=choices, metavar=None if choices else kind.__name__.upper(), **options
                )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(None if args is None else [self._canonical(a) for a in args], namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = self.parse_known_args(args, namespace)
        if left:
            self.refuse_unknown(left)
        return found

    def refuse_unknown(self, left: Sequence[str]) -> NoReturn:
        flags = [a for a in left if a.startswith("-")]
        if not flags:
            self.error(f"{left[0]} is one argument too many")
        name = flags[0].split("=", 1)[0]
        near = difflib.get_close_matches(name, list(self._option_string_actions), 1, 0.7)
        self.error(f"there is no flag {name}" + (f": did you mean {near[0]}?" if near else ""))

    def _canonical(self, argument: str) -> str:
        if not argument.startswith("--"):
            return argument
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        if not equals and name in self._booleans:
            return f"{name}=true"
        positive = "--" + name.removeprefix("--no-")
        if not equals and name.startswith("--no-") and name not in self._booleans and positive in self._booleans:
            return f"{positive}=false"
        return name + equals + value


def flag_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def from_namespace(settings: type[T], namespace: argparse.Namespace, **more: Any) -> T:
    """An instance of the dataclass out of parsed flags. Raises its own `ValueError`."""
    # `type[T]` cannot say that it is a dataclass
    names = {f.name for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    found = {n: v for n, v in vars(namespace).items() if n in names and v is not None}
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}
    return settings(**{**given, **more})


def _plain_type(hint: Any) -> type:
    """`int | None` as int, `tuple[str, ...]` as tuple."""
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    plain: type = typing.get_origin(hint) or hint
    return plain


def _boolean(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def _title(settings: type) -> str:
    return {"EngineConfig": "engine", "ServerSettings": "server"}.get(settings.__name__, settings.__name__)
