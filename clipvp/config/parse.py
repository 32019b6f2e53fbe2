"""Configs from YAML files, dotted command line options and nested dictionaries, all read by jsonargparse.

Some keys choose which other keys exist (``schema.SECTIONS``), and plug-ins add choices. So the choices are looked up
first, and then everything is read with the keys that they allow. ``--config`` and ``--method`` take files, or names of
those that come with the package. A key of a file that belongs to another choice, such
as a border's width beside ``kind: padding``, is ignored, so that files can be combined; on the command line it is an
error.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from ..files import read_text
from ..presets import find_config, find_method
from ..registry import UserError
from .plugins import load_plugins
from .schema import SECTIONS, RunConfig

Config = TypeVar("Config")

_KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "list": "a list such as [a, b]",
    "list[int]": "a list of whole numbers",
    "list[str]": "a list of texts",
    "dict": "a section with keys",
    "NoneType": "null",
}


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the lines of a description as they are."""


def parse(
    description: str,
    config_class: type[Config] = RunConfig,
    arguments: Sequence[str] | None = None,
    defaults: dict[str, Any] | None = None,
    extend: Callable[[ArgumentParser], None] | None = None,
    positional: str | None = None,
) -> tuple[Config, Any]:
    """Read a config from ``--config FILE`` and ``--section.key value``.

    Args:
        description: The first lines of ``--help``.
        config_class: A dataclass, its sections dataclasses.
        arguments: The command line; the program's own when None.
        defaults: Dotted keys and the values that replace the config's own defaults.
        extend: Adds options beyond the config to the parser.
        positional: The key that a first argument without dashes is the value of.

    Returns:
        The config, and the namespace with the other options.

    Raises:
        UserError: Something given is not allowed.
    """
    arguments = with_underscores(sys.argv[1:] if arguments is None else arguments)
    if positional is not None and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, f"--{positional}")
    takes_method = any(item.name == "mapping" for item in fields(config_class))
    arguments = _with_presets(arguments, takes_method)
    given = {**(defaults or {}), **_given(arguments)}
    load_plugins(_listed(given.get("plugins")))
    choices = _choose(config_class, given)
    parser = choices.parser(description)
    parser.add_argument(
        "--config", action="config", help="YAML file or name; what follows on the command line overrides it."
    )
    if takes_method:
        parser.add_argument(
            "--method",
            default=argparse.SUPPRESS,
            help="YAML file or name of a method, read after every --config.",
        )
    if extend is not None:
        extend(parser)
    choices.add_to(parser)
    parser.set_defaults(defaults or {})
    for place, key, value in _options(arguments):
        if key == "--config":
            values, texts = (choices.without_others(read_yaml(value, how)) for how in _LOADERS)
            value = json.dumps(choices.with_texts(values, texts), default=str)
        elif key == "--plugins":
            value = json.dumps(_listed(yaml.safe_load(value)))
        elif choices.is_text(key.removeprefix("--")) and value[:1] in ("{", "["):
            with suppress(yaml.YAMLError):  # jsonargparse says what is wrong with it
                value = json.dumps(yaml.load(value, yaml.BaseLoader))
        else:
            continue
        arguments[place : place + 1 + (arguments[place] == key)] = [key, value]
    return choices.build(parser, lambda: parser.parse_args(arguments))


def from_dict(values: dict[str, Any], config_class: type[Config] = RunConfig) -> Config:
    """Return the config that nested dictionaries describe, as ``to_dict`` gives them.

    No plug-in is imported: the dictionaries may come from a file of somebody else.

    Raises:
        UserError: An unknown key or section, or a value that is not allowed.
    """
    if not isinstance(values, dict):
        raise UserError(f"config: the whole is {values!r}, not a section with keys")
    choices = _choose(config_class, flat_sections(values))
    parser = choices.parser("")
    choices.add_to(parser)
    own = choices.without_others(values)
    return choices.build(parser, lambda: parser.parse_object(choices.with_texts(own, own)))[0]


def given_keys(arguments: Sequence[str] | None = None) -> set[str]:
    """Return the names of the options that a command line gives, the program's own when None."""
    arguments = with_underscores(sys.argv[1:] if arguments is None else arguments)
    return {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Return a command line with underscores in the names of its options: ``--image-size`` is ``--image_size``.

    A third part of a name stays, which may be a user's own, as in ``--data.class_names.T-shirt shirt``; so does what
    follows a ``--`` alone.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    names = [
        re.sub(r"^--[\w-]+(\.[\w-]+)?", lambda name: f"--{name[0][2:].replace('-', '_')}", given)
        for given in arguments[:end]
    ]
    return [*names, *arguments[end:]]


def _with_presets(arguments: list[str], takes_method: bool) -> list[str]:
    """Return a command line with the files of ``--config``, and ``--method`` as one more of them, after the last."""
    kept: list[str] = []
    methods: list[str] = []
    after = 0  # where the last --config ends
    last = [
        argument for argument in arguments if argument == "--print_config"
    ]  # it shows what was read before it
    waiting = (argument for argument in arguments if argument != "--print_config")
    for argument in waiting:
        key, equals, value = argument.partition("=")
        if key == "--config" or (key == "--method" and takes_method):
            value = value if equals else next(waiting, None)
            if value is None:
                kept.append(argument)
            elif key == "--config":
                kept += [key, find_config(value)]
                after = len(kept)
            else:
                methods += ["--config", find_method(value)]
        else:
            kept.append(argument)
    return [*kept[:after], *methods, *kept[after:], *last]


def _options(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the place, the key with its dashes and the value of each option."""
    for place, argument in reversed(list(enumerate(arguments))):
        key, equals, value = argument.partition("=")
        if key.startswith("--") and (equals or place + 1 < len(arguments)):
            yield place, key, value if equals else arguments[place + 1]


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Return keys and values as files and options give them; a later one overrides."""
    found: dict[str, Any] = {}
    for _, key, value in reversed(list(_options(arguments))):
        if key == "--config":
            found |= flat_sections(read_yaml(value))
        else:
            try:
                read = value if value.startswith("#") else yaml.safe_load(value)
                found |= flat_sections({key.removeprefix("--"): read})
            except yaml.YAMLError:
                continue  # jsonargparse says what is wrong with it
    return found


def _listed(plugins: Any) -> list[str]:
    return plugins.split(",") if isinstance(plugins, str) else plugins or []


_LOADERS = yaml.SafeLoader, yaml.BaseLoader  # values, and what is written for them


def read_yaml(file: str, loader: type = yaml.SafeLoader) -> dict[str, Any]:
    """Return the content of a config file.

    Raises:
        UserError: It cannot be read, or holds no sections and keys.
    """
    try:
        values = yaml.load(read_text(file), loader)  # noqa: S506, both loaders make data alone
    except OSError as error:
        raise UserError(f"config: {file!r} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"config: {file!r} cannot be decoded: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"config: {file!r} holds {values!r}, not sections with keys")
    return values


def flat_sections(values: dict[str, Any]) -> dict[str, Any]:
    """Return sections as dotted keys; what is inside a key's own value stays as it is."""
    found = {}
    for key, value in values.items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {str(key): value}
    return found


@dataclass
class _Choices:
    """A config class with the sections that were chosen.

    Args:
        config_class: The dataclass.
        values: Section to the value of the key that chooses.
        texts: Dotted keys that are texts: jsonargparse takes some of them (#a, ~, null) for empty.
    """

    config_class: type
    values: dict[str, str]
    texts: dict[str, str]

    def section(self, name: str) -> type:
        return SECTIONS[name].config_class(self.values[name])

    def parser(self, description: str) -> ArgumentParser:
        return ArgumentParser(
            usage="%(prog)s [--config FILE.yaml] [--key VALUE] [--section.key VALUE ...]",
            description=description,
            epilog=self._others(),
            formatter_class=_Help,
            exit_on_error=False,
        )

    def add_to(self, parser: ArgumentParser) -> None:
        """Add all keys of the config to a parser."""
        chosen = [
            (name, self.section(name), field(default_factory=self.section(name))) for name in self.values
        ]
        given = {"__doc__": self.config_class.__doc__, "__module__": self.config_class.__module__}
        name = self.config_class.__name__
        parser.add_class_arguments(make_dataclass(name, chosen, bases=(self.config_class,), namespace=given))
        for section, value in self.values.items():
            parser.set_defaults({f"{section}.{SECTIONS[section].key}": value})

    def without_others(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return nested values without the keys that belong to other choices of their section."""
        names = [item.name for item in fields(self.config_class)]
        for name in values:
            if str(name).partition(".")[0] not in names:
                inner = values[name]
                first = f".{next(iter(inner))}" if isinstance(inner, dict) and inner else ""
                raise UserError(self._unknown(f"{name}{first}", self._keys()))
        kept = {**values, "plugins": _listed(values["plugins"])} if "plugins" in values else dict(values)
        for name in self.values.keys() & values.keys():
            if isinstance(values[name], dict):
                section, own = SECTIONS[name], SECTIONS[name].keys(self.values[name])
                kept[name] = {k: v for k, v in values[name].items() if k in own or not section.owners(k)}
        return kept

    def is_text(self, key: str) -> bool:
        """Return whether a dotted key takes texts alone: one, several, or by name."""
        name, _, inner = key.partition(".")
        kind = self.section(name) if name in self.values and inner else self.config_class
        types = {item.name: set(str(item.type).split(" | ")) for item in fields(kind)}
        return types.get(inner or name, {"other"}) <= {"str", "None", "list[str]", "dict[str, str]"}

    def with_texts(self, values: dict[str, Any], texts: dict[str, Any], section: str = "") -> dict[str, Any]:
        """Return values with each key that takes texts as it is written: YAML makes 1e5, no and 2026-11-25 others."""
        found = {}
        for key, value in values.items():
            if not section and key in self.values and isinstance(value, dict):
                found[key] = self.with_texts(value, texts[key], key)
            elif value is not None and self.is_text(f"{section}.{key}" if section else str(key)):
                found[key] = _as_text(texts[key])
            else:
                found[key] = value
        return found

    def _keys(self) -> list[str]:
        """Return all dotted keys, and the sections."""
        found = []
        for item in fields(self.config_class):
            kind = self.section(item.name) if item.name in self.values else item.default_factory
            inner = [f"{item.name}.{key.name}" for key in fields(kind)] if is_dataclass(kind) else []
            found += [item.name, *inner]
        return found

    def build(self, parser: ArgumentParser, read: Callable[[], Namespace]) -> tuple[Any, Any]:
        """Return the config and the whole namespace."""
        wanted = fields(self.config_class)
        keys = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
        try:
            parsed = read()
            for key, text in self.texts.items():
                if parsed.get(key, "") is None:
                    parsed[key] = text
            for item in wanted:
                if is_dataclass(item.default_factory) and not isinstance(parsed[item.name], Namespace):
                    raise UserError(f"{item.name}: {parsed[item.name]!r} is not a section with keys")
            built = parser.instantiate(parsed)
            for item in wanted:
                _check_none(built[item.name], item, item.name)
            return self.config_class(**{item.name: built[item.name] for item in wanted}), built
        except UserError:
            raise
        except Exception as error:  # jsonargparse raises several types; each is about what was given
            raise UserError(self._explain(str(error), keys)) from error

    def _explain(self, message: str, keys: Sequence[str]) -> str:
        """Return jsonargparse's message in one line, with the nearest key where one is unknown."""
        message = " ".join(str(message).split())
        for pattern in (
            r"Group '([^']+)' does not accept option '([^']+)'",
            r"Option '([^']+)' is not accepted",
        ):
            if found := re.search(pattern, message):
                return self._unknown(".".join(found.groups()), keys)
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            given = found[1].partition("=")[0]
            is_key = given.startswith("--")
            return self._unknown(given.lstrip("-"), keys) if is_key else f"{given!r} belongs to no key"
        if found := re.search(
            r'Parser key "([^"]+)": (.*)Expected an? <class .*(?:Got|Given) value: (.*)$', message
        ):
            key, union, value = found.groups()
            kinds = re.findall(r"list\[\w+\]|(?<=<class ')\w+", union.partition("Errors:")[0] or message)
            allowed = [_KINDS.get(kind, kind) for kind in dict.fromkeys(kinds)]
            return f"{key}: {value!r} is not allowed; give {' or '.join(allowed)}"
        return message

    def _unknown(self, key: str, keys: Sequence[str]) -> str:
        """Return the error of an unknown dotted key."""
        name, _, inner = key.partition(".")
        if name in self.values:
            return SECTIONS[name].unknown(inner, self.values[name])
        close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
        return f"unknown key {key!r}; " + (
            f"did you mean {close[0]!r}?" if close else "--help lists all keys"
        )

    def _others(self) -> str:
        """Return the last lines of ``--help``: how to see the keys of other choices."""
        lines = ["Keys of other choices, for example:"]
        for name in self.values:
            section = SECTIONS[name]
            others = [kind for kind in section.registry.names() if section.registry.config(kind) is not None]
            others = [kind for kind in others if kind != self.values[name]]
            if others:
                lines.append(
                    f"  --{name}.{section.key} {others[0]} --help   (also {', '.join(others[1:]) or 'none'})"
                )
        return "\n".join(lines) if len(lines) > 1 else ""


def _as_text(value: Any) -> Any:
    """Return numbers as texts, also in lists and as keys; other values as they are."""
    if isinstance(value, dict):
        return {_as_text(key): _as_text(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_text(inner) for inner in value]
    return str(value) if type(value) in (int, float) else value


def _check_none(value: Any, item: Field, where: str) -> None:
    """Refuse null where a key does not allow it; jsonargparse lets it pass."""
    if value is None and "None" not in str(item.type):
        raise UserError(f"{where}: null is not allowed; give {_KINDS.get(str(item.type), item.type)}")
    if is_dataclass(value):
        for inner in fields(value):
            _check_none(getattr(value, inner.name), inner, f"{where}.{inner.name}")


def _choose(config_class: type, given: dict[str, Any]) -> _Choices:
    """Return the choice of each section, by the dotted keys that are given."""
    values = {}
    for item in fields(config_class):
        if item.name in SECTIONS and item.default_factory is SECTIONS[item.name].base:
            section = SECTIONS[item.name]
            default = next(i.default for i in fields(section.base) if i.name == section.key)
            value = given.get(f"{item.name}.{section.key}")
            values[item.name] = value if isinstance(value, str) else default
    texts = {key: value for key, value in given.items() if isinstance(value, str)}
    return _Choices(config_class, values, texts)
