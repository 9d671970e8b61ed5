"""Parsers that refuse with one `UserError`: the deepest cause in jsonargparse's report, its key, value and place."""

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jsonargparse
from jsonargparse import ArgumentParser, Namespace

from eenet.errors import UserError, command
from eenet.parsing.given import find_given, leaves, plain
from eenet.reading import read_text

PACKAGES = ("lightning_modules", "datamodules", "eenet.backbones", "eenet.gates", "eenet.inference_modules", "eenet")
"""Where a class is looked for that is given without its module."""

TRAINING = ("fit", "validate", "test")
"""Commands that a configuration tells what to do."""

LONGEST = 100
"""Characters of a value that are shown."""

MARKER = re.compile(
    r"Parser key \"(?P<key>[^\"]+)\"[^:\n]*:"
    r"|Problem with given class_path '(?P<path>[^']+)':"
    r"|Type (?:typing|collections\.abc)\.Callable.*? expects a function or a callable class:"
    r"(?=.*class_path='(?P<called>[^']+)')?"
    r"|\A(?:argument )?-[-\w/]*?(?P<option>\w[\w.]+):",
    re.DOTALL,
)
"""What opens a level of a report."""

UNKNOWN = re.compile(
    r"unrecognized arguments: (?P<argument>[^\s;]+)"
    r"|(?:Option|Subcommand '\w+' does not accept option|Group '(?P<group>\S+)' does not accept option) '(?P<key>\S+)'"
    r"(?: is not accepted before subcommand '(?P<command>\w+)')?"
)
"""How jsonargparse refuses a key or an option that does not exist."""

PLAIN = re.compile(r"Subtypes: .*(?:Literal|'(?:int|float|bool|str|dict|list)'|list\[)")
"""That a value may be something else than a class."""

NEAREST = "; did you mean "

HINTS = {
    "RunData": "; make it the `data` of a datamodules.OwnData, or write its `read` and `build` as a datamodules."
    "SplitData"
}
"""What to do where a class is not of some base."""


class Refusals:
    """Mixin of a jsonargparse parser that raises a `UserError` where the parser would print its usage and exit."""

    def parse_args(self: Any, *given: Any, **options: Any) -> Any:
        """Parse; a `UserError` for what jsonargparse drops: a key that does not exist and holds an empty mapping."""
        config = super().parse_args(*given, **options)  # type: ignore[misc]
        own = config[config.subcommand] if config.get("subcommand") else config
        for key, value in leaves((given[0] if given else options.get("args")) or []):
            if value == {} and not holds(own, key.split(".")):
                self.error(f"unrecognized arguments: --{key}")
        return config

    def error(self: Any, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments.

        Args:
            message: What jsonargparse says.
            ex: Its cause.

        Raises:
            ArgumentError: This is the parser of a class inside a configuration; the parser around it says where.
            UserError: Otherwise.
        """
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [text.lstrip("-") for action in parser._actions for text in action.option_strings]
        message = with_nearest(message, options)
        if not self.exit_on_error:
            raise ArgumentError(None, message) from ex
        args, prog = getattr(parser, "args", []), parser.prog.replace(" [options]", "")
        if args and self._subcommands_action and args[0] in self._subcommands_action.choices:
            message, prog = message.replace(f" {args[0]}.", " "), f"{prog} {args[0]}"
        raise refusal(message, args, prog, options) from ex


def holds(config: Any, parts: Sequence[str]) -> bool:
    """Whether a parsed configuration has a key; `init_args` and places in lists are passed through.

    Example:
        >>> config = Namespace(model=Namespace(class_path="A", init_args=Namespace(seed=3)))
        >>> holds(config, ["model", "seed"]), holds(config, ["model", "init_args", "sead"])
        (True, False)
    """
    parts = [part for part in parts if part != "init_args"]
    if isinstance(config, list):
        return any(holds(item, parts) for item in config)
    if not parts or not isinstance(config, Namespace) or parts[0] in ("config", "dict_kwargs"):
        return True
    if parts[0] in config:
        return holds(config[parts[0]], parts[1:])
    return "init_args" in config and holds(config["init_args"], parts)


def _read_text(path: Any, before: Callable[[Any], str] = jsonargparse.Path.read_text) -> str:
    """Text of a configuration, which jsonargparse would read in the locale's encoding."""
    return read_text(Path(path)) if os.path.isfile(path) else before(path)


jsonargparse.Path.read_text = _read_text  # type: ignore[assignment,method-assign]


class Parser(Refusals, ArgumentParser):
    """The parser of a command."""


def with_nearest(message: str, known: Sequence[str]) -> str:
    """A message, with the known name that is most like the one that it refuses, where one is.

    Example:
        >>> with_nearest("Option 'tradeof' is not accepted", ["tradeoff", "features"])
        "Option 'tradeof' is not accepted; did you mean tradeoff?"
    """
    unknown = UNKNOWN.match(message)
    if not unknown:
        return message
    name = refused(unknown).lstrip("-").partition("=")[0]
    near = get_close_matches(name, known, n=1)
    return f"{message}{NEAREST}{near[0]}?" if near else message


def refused(unknown: re.Match[str]) -> str:
    """The argument or the key that a match of `UNKNOWN` is about.

    Example:
        >>> refused(UNKNOWN.match("Group 'trainer' does not accept option 'epochs'"))
        'trainer.epochs'
    """
    return unknown["argument"] or ".".join(filter(None, (unknown["group"], unknown["key"])))


class Cause(NamedTuple):
    """The innermost level of a report.

    Attributes:
        key: Where it is, as the configuration writes it.
        path: The class that is refused or whose arguments are, where it is about a class.
        text: What is said there.
        prog: The command, as `eenet fit`.
    """

    key: str
    path: str | None
    text: str
    prog: str

    def below(self, name: str) -> str:
        """The key of an argument at this level."""
        return ".".join(filter(None, (self.key, "init_args" if self.path else "", name)))


def deepest(message: str, prog: str = "eenet") -> Cause:
    """The innermost level of a report.

    Example:
        >>> deepest('''Parser key "data":
        ...   Problem with given class_path 'Digits':
        ...     Parser key "seed":
        ...       Bad''')
        Cause(key='data.init_args.seed', path=None, text='Bad', prog='eenet')
    """
    cause, depth = Cause("", None, message, prog), -1
    for marker in MARKER.finditer(message):
        column = marker.start() - message.rfind("\n", 0, marker.start())
        if column <= depth:
            break  # the next of several alternatives
        depth, text = column, level(message[marker.end() :])
        if name := marker["key"] or marker["option"]:
            cause = Cause(name if name == cause.key else cause.below(name), None, text, prog)
        else:
            cause = cause._replace(path=marker["path"] or marker["called"] or "the class", text=text)
    return cause


def level(text: str) -> str:
    """The rest of a line or, where nothing is left of it, the lines after it that are indented like the first."""
    if text.partition("\n")[0].strip():
        return text.partition("\n")[0].strip()
    lines = [line for line in text.splitlines() if line.strip()]
    indent = " " * (len(lines[0]) - len(lines[0].lstrip())) if lines else ""
    end = next((number for number, line in enumerate(lines) if not line.startswith(indent)), len(lines))
    return "\n".join(line.removeprefix(indent) for line in lines[:end])


def refusal(message: str, args: Sequence[str], prog: str, options: Sequence[str] = ()) -> UserError:
    """The user's mistake that a report of jsonargparse is about, in the spelling of the command's options."""
    field, value, problem = explain(deepest(message, prog))
    if NEAREST not in message:  # else the spelling is what is refused
        field = next((name for name in options if plain(name) == plain(field)), field)
    found = find_given(args, field)
    if found is None:
        return UserError(field, short(value), problem)
    return UserError(field, short(found.value), problem + found.place)


def short(value: Any) -> Any:
    """A value, or the beginning of its text where that is long."""
    text = str(value)
    return value if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


Explained = tuple[str, Any, str]
"""Field, value as far as a report has it, and what is wrong with it."""


def explain(cause: Cause) -> Explained:
    """What a level of a report says, in other words where these are known."""
    for pattern, words in RULES:
        said = pattern.search(cause.text)
        explained = words(cause, said) if said else None
        if explained:
            return explained
    text = cause.text.partition(". Got value: ")[0]
    return cause.key or "arguments", value_in(cause), " ".join(text.split())


def value_in(cause: Cause) -> str | None:
    """The refused value, as the end of a report has it."""
    value = re.search(r"(?:Got value|Given value): (.*)\Z", cause.text, re.DOTALL)
    return value[1] if value else None


def asked(cause: Cause, *words: str) -> str:
    """The command that was called, to be quoted."""
    return command(*cause.prog.split()[1:], *words)


def unknown_name(cause: Cause, said: re.Match[str]) -> Explained:
    """A key or an option that does not exist."""
    if said["command"]:
        return "command", None, f"must come first, as in {command(said['command'], '--config', 'CONFIG')}"
    near = re.search(rf"{NEAREST}\S+\?", cause.text)
    name, _, value = refused(said).partition("=")
    if said["argument"] and not name.startswith("-"):
        return "arguments", name, f"is one too many; see {asked(cause, '--help')}"
    owner = f"argument of {cause.path}" if cause.path else f"option of {asked(cause)}"
    hint = near[0] if near else "" if cause.path else f"; see {asked(cause, '--help')}"
    return cause.below(name.lstrip("-")), value or None, f"is no {owner}{hint}"


def missing(cause: Cause, said: re.Match[str]) -> Explained:
    """Arguments that must be given."""
    names = said[1].split(", ")
    fields = ", ".join(map(cause.below, names))
    if not cause.path and cause.prog.split()[-1] in TRAINING:
        return (
            fields,
            None,
            f"must be given, best by a configuration: --config; {command('list')} prints the shipped ones",
        )
    where = f" to {cause.path}" if cause.path else f"; see {asked(cause, '--help')}"
    return fields, None, f"must be given{where}"


def choice(cause: Cause, said: re.Match[str]) -> Explained:
    """A part of a command that does not exist, or none."""
    options = re.findall(r"\w+", said["one"] or said["of"])
    near = get_close_matches(said["choice"] or "", options, n=1)
    hint = f"{NEAREST}{near[0]}?" if near else ""
    return "command", said["choice"], f"must be one of {', '.join(options)}{hint}"


def no_import(cause: Cause, said: re.Match[str]) -> Explained | None:
    """A class that cannot be imported."""
    path = cause.path or said["name"] or ".".join(re.findall(r"'(\S+)'", said["reason"]))  # `--data.help` names no path
    if cause.path is None and PLAIN.search(cause.text):
        return None  # it was meant to be something else
    module, _, name = path.rpartition(".")
    offered = {
        name: f"{package}.{name}"
        for package in ([module] if module else PACKAGES)
        for name in [*dir(sys.modules.get(package)), *getattr(sys.modules.get(package), "__all__", [])]
        if name[0].isupper()
    }
    near = get_close_matches(name, offered, n=1)
    alien = f"No module named {path.partition('.')[0]!r}" == said["reason"]
    hint = f"{NEAREST}{offered[near[0]]}?" if near else "; is its folder in PYTHONPATH?" if alien else ""
    return cause.key, path, f"cannot be imported ({said['reason'] or 'no such class'}){hint}"


def no_class_path(cause: Cause, said: re.Match[str]) -> Explained:
    """A part of a configuration that does not say its class, or more than its class and arguments."""
    if re.match(r"\{(?:'\w+': [^{}\[\]]*, )?'class_path': ", value_in(cause) or ""):
        return cause.key, None, "has keys beside class_path and init_args; move them under init_args"
    return f"{cause.key}.class_path", None, f"must be given, the path of a subclass of {said[1]}"


def wrong_class(cause: Cause, said: re.Match[str]) -> Explained:
    """A class of another kind."""
    return cause.key, cause.path or said["path"], f"must be a subclass of {said['base']}{HINTS.get(said['base'], '')}"


def ambiguous(cause: Cause, said: re.Match[str]) -> Explained:
    """The beginning of several options."""
    return said[1], None, f"could be {said[2]}"


def abstract(cause: Cause, said: re.Match[str]) -> Explained:
    """A class without instances."""
    return cause.key, said[1], "is abstract; give one of its subclasses"


def no_arguments(cause: Cause, said: re.Match[str]) -> Explained:
    """Arguments of a class that are no mapping."""
    return cause.below(""), None, "must hold keys and values"


def wrong_type(cause: Cause, said: re.Match[str]) -> Explained:
    """A value of another type."""
    types = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", said[1] or said[2]).replace("typing.", "")
    types = re.sub(r"Literal\[(.*?)\]", r"\1", types).replace("NoneType", "null")
    value = value_in(cause)
    near = get_close_matches(value or "", re.findall(r"'([^']+)'", types), n=1)
    *first, last = re.split(r", (?![^\[]*\])", types)
    hint = f"{NEAREST}{near[0]}?" if near else ""
    return cause.key, value, f"must be {' or '.join(filter(None, (', '.join(first), last)))}{hint}"


def not_trusted(cause: Cause, said: re.Match[str]) -> Explained:
    """A name that a run's own configuration may not import."""
    remedy = f"if you know its code, give --trust {said[1].partition('.')[0]}"
    return cause.key, said[1], f"is not trusted, as a run's folder may come from a stranger; {remedy}"


RULES: list[tuple[re.Pattern[str], Any]] = [
    (UNKNOWN, unknown_name),
    (re.compile(r"Importing '(\S+)' is not allowed"), not_trusted),
    (re.compile(r"the following arguments are required: (.*)"), missing),
    (re.compile(r"invalid choice: '(?P<choice>.*?)' \(choose from (?P<one>.*)\)|to be one of \{(?P<of>.*)\}"), choice),
    (
        re.compile(
            r"(?P<reason>module '\S+' has no attribute '\w+'|No module named '\S+'|cannot import name [^.]*)"
            r"|Expected a dot import path string: (?P<name>\S+)"
        ),
        no_import,
    ),
    (re.compile(r"Not a valid subclass of (\w+)"), no_class_path),
    (re.compile(r"Import path (?P<path>\S+ )?does not correspond to a subclass of (?P<base>\w+)"), wrong_class),
    (re.compile(r"Expected an instantiatable class, but (\S+) is abstract"), abstract),
    (re.compile(r"object has no attribute 'keys'|Unable to load config"), no_arguments),
    (re.compile(r"ambiguous option: -*(\S+) could match (.*)"), ambiguous),
    (re.compile(r"Subtypes: \[(.*)\]\nErrors|Expected a (.*?)(?:\. Got value|$)"), wrong_type),
]
"""What jsonargparse says, and how it is said here."""
