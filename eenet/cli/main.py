"""Entry point: run a command, and print a user's mistake as one line instead of a traceback.

What nobody foresaw keeps its traceback; `EENET_DEBUG=1` shows that of a mistake too.
"""

import ast
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from eenet import __version__
from eenet.beside import settle
from eenet.cli.mistakes import users_mistake
from eenet.errors import UserError
from eenet.errors import command as quoted
from eenet.late import EXPECTED
from eenet.parsing.shipped import imports, with_own, with_paths

LIGHTNING = {
    "fit": "train what a configuration describes",
    "validate": "judge all exits and operating points on the validation split",
    "test": "really route the test split, at the points of a calibration where asked",
}
"""Lightning's commands, which `eenet.cli.lightning` runs."""

ARGUMENTS = {
    "fit": [
        ("--config FILE", "configuration, a file or a shipped one; several are laid over each other"),
        ("--model timm/NAME --data FOLDER --method NAME", "instead: backbone, jei_dnn, decoupled or l2w_den on images"),
        ("--resume RUN", "continue a run after its last whole epoch"),
        ("--ckpt_path last|auto|FILE", "continue; `auto` begins where there is nothing to continue"),
    ],
    "validate": [("RUN", "run folder"), ("--ckpt_path last|best|FILE", "which checkpoint")],
    "test": [
        ("RUN", "run folder"),
        ("--ckpt_path last|best|FILE", "which checkpoint"),
        ("--point NAMES|all", "points of `eenet calibrate`, as budget-0.5"),
        ("--per_class true", "report the accuracy of every class too"),
    ],
}
"""What Lightning's commands are mostly told; all that they can be, Lightning itself says."""

COMMANDS = {
    "bench": "eenet.cli.bench",
    "calibrate": "eenet.cli.calibrate",
    "compare": "eenet.cli.compare",
    "doctor": "eenet.cli.doctor",
    "export": "eenet.cli.export",
    "features": "eenet.cli.features",
    "infer": "eenet.cli.infer",
    "inspect": "eenet.cli.inspect",
    "layers": "eenet.cli.layers",
    "list": "eenet.cli.list",
    "generate": "eenet.cli.generate",
    "predict": "eenet.cli.predict",
    "quickstart": "eenet.cli.quickstart",
    "serve": "eenet.cli.serve",
    "sweep": "eenet.cli.sweep",
}
"""Modules of the commands beside Lightning's; each has a `main(args)` and says in its first line what it is for."""

INTERRUPTED, TERMINATED = 130, 143
"""Status after Ctrl-C and after SIGTERM, as shells have it."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the `eenet` command.

    Args:
        args: Arguments; those of the process when `None`.

    Raises:
        SystemExit: With status 2 after a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    for expected in (*EXPECTED, "LightningCLI's args parameter"):
        warnings.filterwarnings("ignore", expected)
    logging.getLogger("huggingface_hub.utils._http").addFilter(once())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal's encoding lacks is spelled, as on stderr
    given = list(sys.argv[1:] if args is None else args)
    for line in settle():
        print(f"eenet: {line}", file=sys.stderr)
    try:
        check_folder()
        run(given)
    except KeyboardInterrupt as interrupt:
        raise SystemExit(INTERRUPTED) from interrupt
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning leaves with status 1
            raise SystemExit(INTERRUPTED) from end
        if type(end).__name__ == "SIGTERMException":  # of Lightning, which is not imported for this
            print("eenet: ended by SIGTERM; `--ckpt_path auto` continues after the last epoch", file=sys.stderr)
            raise SystemExit(TERMINATED) from end
        raise
    except BrokenPipeError as error:  # of a reader that has seen enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from error
    except Exception as error:
        mistake = users_mistake(error, given)
        if mistake is None or os.environ.get("EENET_DEBUG"):
            raise
        print(f"eenet: error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from error


def once() -> Callable[[logging.LogRecord], bool]:
    """A filter of what a library says of a hub that does not answer: each thing once, and of trying again nothing.

    Example:
        >>> first, said = once(), ["no answer", "Retrying in 1s [Retry 1/5].", "no answer", "Retrying in 2s", "gone"]
        >>> [text for text in said if first(logging.LogRecord("", 0, "", 0, text, None, None))]
        ['no answer', 'gone']
    """
    heard = {""}

    def is_new(record: logging.LogRecord) -> bool:
        text, known = record.getMessage(), len(heard)
        heard.add("" if text.startswith("Retrying in") else text)
        return len(heard) > known

    return is_new


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without searches for garbage, of which imports make little: they take a fifth of Lightning's import.

    Example:
        >>> with uncollected():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def check_folder() -> None:
    """Raise a `UserError` where the working folder was removed: relative paths mean nothing there."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("folder", os.environ.get("PWD"), "the working folder was removed; cd to another") from error


def run(args: list[str]) -> None:
    """Hand the arguments to their command, which alone is imported; a `UserError` where there is none such."""
    args = without_trust(args)
    command = args[0] if args else "--help"
    if command in ("--help", "-h"):
        print(usage())
    elif command == "--version":
        print(f"eenet {__version__}")
    elif command in COMMANDS:
        args = with_paths(args[1:])
        import_module(COMMANDS[command]).main(args)
    elif command in LIGHTNING and args[1:] in (["--help"], ["-h"]):
        print(short_help(command))
    elif command in LIGHTNING or command.startswith("-"):
        args = ["--help" if text == "--help_all" else text for text in args]
        args = with_paths(with_run(args))
        if any(text.partition("=")[0] == "--method" for text in args):
            with uncollected():
                fit = import_module("eenet.cli.fit")
            return fit.main(args[1:])
        with uncollected():
            from eenet.cli.lightning import EenetCLI
        args, allowed = with_own(args)
        with imports(allowed):
            EenetCLI(args=args)
    else:
        near = get_close_matches(command, [*LIGHTNING, *COMMANDS], n=1)
        meant = f"; did you mean {quoted(near[0])}?" if near else ";"
        raise UserError("command", command, f"there is no such command{meant} {quoted('--help')} lists them all")


def with_run(args: list[str]) -> list[str]:
    """Arguments of Lightning's commands with the configuration of the run that they name, `RUN` or `--resume RUN`.

    Example:
        >>> with_run(["test", "--point", "all"]), with_run(["fit", "--resume=nowhere"])
        Traceback (most recent call last):
        eenet.errors.UserError: run = 'nowhere': there is no nowhere/config.yaml; `eenet fit` makes a run
    """
    command, *rest = args
    found: list[str] = []
    if command == "fit":
        for number, text in enumerate(rest):
            name, equals, value = text.partition("=")
            if name == "--resume":
                found = [value if equals else next(iter(rest[number + 1 : number + 2]), "")]
                rest = [*rest[:number], "--ckpt_path=last", *rest[number + (1 if equals else 2) :]]
                break
    elif command in LIGHTNING and rest and not rest[0].startswith("-"):
        found, rest = rest[:1], rest[1:]
    for run in found:
        if not Path(run, "config.yaml").is_file():
            raise UserError("run", run, f"there is no {run}/config.yaml; {quoted('fit')} makes a run")
        rest = [f"--config={Path(run, 'config.yaml')}", *rest]
    return [command, *rest]


def without_trust(args: list[str]) -> list[str]:
    """Arguments without `--trust NAME`, whose names are trusted from here on; a `UserError` where one is no name."""
    kept, given = [], iter(args)
    for text in given:
        name, equals, value = text.partition("=")
        if name != "--trust":
            kept.append(text)
            continue
        value = value if equals else next(given, "")
        if not all(map(str.isidentifier, value.split("."))):
            raise UserError("trust", value, "must be a package, module or class, as my_package")
        from eenet.runs.trust import trust

        trust(value)
    return kept


def short_help(command: str) -> str:
    """What `--help` of one of Lightning's commands prints."""
    lines = [f"  {name}\n      {text}" for name, text in ARGUMENTS[command]]
    lines.append(
        "  --trainer.KEY VALUE, --model.init_args.KEY VALUE, --data.init_args.KEY VALUE\n      change the configuration"
    )
    lines.append("  --print_config\n      print the configuration and end")
    more = f"`eenet {command} --help_all` lists the options of Lightning's trainer too."
    return "\n".join([f"usage: eenet {command} ...", "", f"{LIGHTNING[command].capitalize()}.", "", *lines, "", more])


def usage() -> str:
    """What `eenet --help` prints."""
    commands = {**LIGHTNING, **{name: purpose(module) for name, module in COMMANDS.items()}}
    lines = [f"  {name:<{max(map(len, commands))}}  {text}" for name, text in commands.items()]
    return "\n".join(
        [
            "usage: eenet COMMAND ...",
            "",
            "Early-exit networks: train, calibrate and really run them.",
            "",
            *lines,
            "",
            "`eenet COMMAND --help` explains a command, `eenet --version` prints the version. Every command takes",
            "`--trust PACKAGE` where a run's folder names classes of a package that eenet does not need.",
        ]
    )


def purpose(module: str) -> str:
    """What a command's module says after its name in the first line of its docstring, read without importing it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    documentation = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return documentation.splitlines()[0].partition(": ")[2].rstrip(".")
