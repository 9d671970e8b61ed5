"""`eenet fit`: train what a configuration describes, or `--model timm/NAME --data FOLDER --method jei_dnn`."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from eenet.cli.lightning import EenetCLI
from eenet.errors import UserError
from eenet.runs import RunFolder


def main(args: list[str]) -> None:
    """Train a backbone on a folder of images, unless its run is finished, and then exits on it.

    What is configured for Lightning's trainer and the data goes to both, what is for the routine to the last. Each run
    folder gets its configuration.

    Args:
        args: `--method NAME` with `--model` and `--data`, and further arguments of `eenet fit`.

    Raises:
        UserError: An unknown model or method, or no image.
    """
    from eenet.api.recipe import recipe

    parser = argparse.ArgumentParser(prog="eenet fit", allow_abbrev=False, exit_on_error=False)
    for name, kind, default in (
        ("--model", str, None),
        ("--data", str, None),
        ("--method", str, "jei_dnn"),
        ("--epochs", int, 15),
        ("--image_size", int, None),
        ("--seed", int, 0),
        ("--trainer.default_root_dir", str, None),
        ("--pretrained", str, "true"),
    ):
        parser.add_argument(name, type=kind, default=default)
    try:
        options, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        problem, _, value = error.message.partition(" value: ")
        raise UserError(str(error.argument_name).lstrip("-"), value.strip("'") or None, problem) from error
    given = vars(options)
    for field in ("model", "data"):
        if given[field] is None:
            raise UserError(field, None, "must be given beside --method, as --model timm/resnet18 --data FOLDER")
    folder, pretrained = given.pop("trainer.default_root_dir"), yaml.safe_load(given.pop("pretrained"))
    if not isinstance(pretrained, bool):
        raise UserError("pretrained", pretrained, "must be true or false")
    with unsaid():
        *first, last = recipe(**given, folder=folder, pretrained=pretrained)
    common = [text for text in joined(rest) if not text.startswith("--ckpt_path")]
    shared = [text for text in common if not text.startswith("--model.")]
    for config in first:
        place = Path(config["trainer"]["default_root_dir"])
        if not RunFolder(place).finished:
            with unsaid():  # refuses before any work is done
                EenetCLI(args=[f"--config={yaml.safe_dump(last)}", *common], run=False)
            print(f"training the backbone first: {place}")
            EenetCLI(args=["fit", f"--config={yaml.safe_dump(config)}", *shared, "--ckpt_path=auto"])
    EenetCLI(args=["fit", f"--config={yaml.safe_dump(last)}", *rest])


@contextmanager
def unsaid() -> Iterator[None]:
    """Say nothing of data and seeds, which the training says."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def joined(args: list[str]) -> list[str]:
    """Arguments with each value beside its name.

    Example:
        >>> joined(["--a", "1", "--b=2", "--c"])
        ['--a=1', '--b=2', '--c']
    """
    found: list[str] = []
    for text in args:
        if found and not text.startswith("--") and "=" not in found[-1]:
            found[-1] = f"{found[-1]}={text}"
        else:
            found.append(text)
    return found
