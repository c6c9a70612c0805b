"""Settings of fine-tuning runs, read from a TOML or YAML file."""

import dataclasses
import re
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.names import meant
from graddrop.xglue.textfile import brief, read_text

SETTINGS = tuple(field.name for field in dataclasses.fields(FinetuneConfig))
"""Names of all settings."""


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings: TOML, or YAML if its name ends in `.yaml` or `.yml`.

    Returns:
        Values by name; dashes in names count as underscores.

    Raises:
        ValueError: If it is not UTF-8, not TOML or not YAML, holds no table, or names a setting
            twice.
        ModuleNotFoundError: If it is YAML and PyYAML is not installed.
        OSError: If it cannot be read.
    """
    text = read_text(path)
    language = "YAML" if path.suffix in (".yaml", ".yml") else "TOML"
    try:
        values = _read_yaml(text) if language == "YAML" else tomllib.loads(text)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        # Beside errors of their own both let through those of the numbers and dates that they make.
        kind = "nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: expected {language} ({kind})") from error
    return spelt(values, str(path))


def spelt(values: Any, origin: str) -> dict[str, Any]:
    """Return a table of settings whose names are spelt with underscores.

    Args:
        values: What a file has where a table is expected.
        origin: Where it stands, for the messages.

    Raises:
        ValueError: If it is no table, or names a setting twice.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{origin}: expected a table of settings, got {brief(values)}")
    by_name: dict[str, Any] = {}
    for written, value in values.items():
        name = written.replace("-", "_")
        if name in by_name:
            raise ValueError(f"{origin}: {brief(name)[1:-1]} is set twice")
        by_name[name] = value
    return by_name


def make_config(values: Mapping[str, Any], origin: str) -> FinetuneConfig:
    """Make a configuration of settings as files have them: lists stand for tuples.

    Args:
        values: Settings by name.
        origin: Where they come from, for the messages.

    Raises:
        ValueError: If a setting is missing, unknown, of the wrong type or out of its range.
    """
    types_ = get_type_hints(FinetuneConfig)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types_:
            raise ValueError(
                f"{origin}: unknown setting {brief(name)}; known: {', '.join(SETTINGS)}"
                f"{meant(name, SETTINGS)}"
            )
        if not fits(value, types_[name]):
            wanted = getattr(types_[name], "__name__", str(types_[name]))
            raise ValueError(
                f"{origin}: a setting has the wrong type ({name}: expected {wanted}, "
                f"got {brief(value)})"
            )
        given[name] = tuple(value) if isinstance(value, list) else value
    for name in ("task", "data", "output"):
        if name not in given:
            raise ValueError(f"{origin}: {name} is missing")
    try:
        config = FinetuneConfig(**given)
        config.resolved()  # beside what the task's recipe says a setting may be out of its range
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return config


def fits(value: object, hint: Any) -> bool:
    """Return whether a value is of the type that a field is annotated with.

    Numbers and texts are such as the system takes: of 64 bits, without NUL or half characters.
    """
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        of = get_args(hint)[0]
        return isinstance(value, list | tuple) and all(fits(item, of) for item in value)
    if isinstance(value, bool):  # which Python counts among the integers
        return hint is bool
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return False
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return False
    return isinstance(value, int | float if hint is float else hint)


def _read_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and free of two traps of YAML 1.1 for settings."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            """Refuse a name that stands twice; the last one would win silently."""
            names = [key.value for key, _ in node.value]
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{twice[0]} is set twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    # 5e-6 is a number, not a text, as in YAML 1.2.
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        "-+.0123456789",
    )
    values = yaml.load(text, Loader)
    return {} if values is None else values
