"""Refusals of the command line: one line each, with field, value, remedy and place."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eenet.cli.lightning import EenetCLI
from eenet.errors import UserError
from eenet.parsing.given import Given, find_given, leaves
from eenet.parsing.refusals import deepest, with_nearest
from tests.cli.test_cli import failure, tiny

EXITS = "list[int], list[str], dict[str, list[float]] or 'all'"
NETWORK = "model.init_args.network.init_args"


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration without mistakes."""
    folder = tmp_path_factory.mktemp("config")
    return yaml.safe_load(tiny(folder / "j.yaml", "JointExits", folder / "run").read_text())


@pytest.fixture
def fit(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Write the configuration with one key set to something else, call `eenet fit`, and give its one line."""

    def write(key: str | None = None, value: Any = None, *args: str) -> str:
        config = copy.deepcopy(values)
        if key is not None:
            *way, last = key.split(".")
            node = config
            for part in way:
                node = node[part]
            node[last] = value
            if value is REMOVED:
                del node[last]
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        lines = failure(capsys, "fit", "--config", str(path), *args).splitlines()
        return "\n".join(line for line in lines if not line.startswith("Seed set")).replace(str(path), "FILE")

    return write


REMOVED = object()

IN_ARGUMENTS = {
    "--trainer.max_epochs abc": "trainer.max_epochs = 'abc': must be int or null",
    "--trainer.max_epochs=1.5": "trainer.max_epochs = '1.5': must be int or null",
    "--trainer.epochs 3": "trainer.epochs = '3': is no option of `eenet fit`; did you mean trainer.min_epochs?",
    "--confg x": "confg = 'x': is no option of `eenet fit`; did you mean config?",
    "--zzz": "zzz = '': is no option of `eenet fit`; see `eenet fit --help`",
    "extra": "arguments = 'extra': is one too many; see `eenet fit --help`",
    "--config": "config = '': expected one argument",
    "--trainer.m 1": "trainer.m = '1': could be --trainer.max_epochs, --trainer.min_epochs, --trainer.max_steps, "
    "--trainer.min_steps, --trainer.max_time, --trainer.model_registry",
    "--seed_everything abc": "seed_everything = 'abc': must be bool or int",
    "--model.tradeof 1": "model.init_args.tradeof = '1': is no argument of lightning_modules.JointExits; "
    "did you mean tradeoff?",
    "--data.init_args.batch_size x": "data.init_args.batch_size = 'x': must be int",
    "--model JointExit": "model = 'JointExit': cannot be imported (no such class); "
    "did you mean lightning_modules.JointExits?",
    "--data datamodules.Digit": "data = 'datamodules.Digit': cannot be imported "
    "(module 'datamodules' has no attribute 'Digit'); did you mean datamodules.Digits?",
    "--data eenet.backbones.ViT": "data = 'eenet.backbones.ViT': must be a subclass of RunData; "
    "make it the `data` of a datamodules.OwnData, or write its `read` and `build` as a datamodules.SplitData",
    f"--{NETWORK}.exits one": f"{NETWORK}.exits = 'one': must be {EXITS}",
    "--model.features dsk": "model.init_args.features = 'dsk': must be 'off', 'memory', 'disk', False or "
    "FeatureOptions; did you mean disk?",
    "--trainer.accelerator gpu": "trainer.accelerator = 'gpu': No supported gpu backend found!; "
    "`eenet doctor` says what this machine has",
    "--trainer.devices 0": "trainer.devices = '0': `Trainer(devices='0')` value is not a valid input using cpu "
    "accelerator.; `eenet doctor` says what this machine has",
    "--trainer.profiler x": "trainer.profiler = 'x': When passing string value for the `profiler` parameter of "
    "`Trainer`, it can only be one of ['simple', 'advanced', 'pytorch', 'xla']",
}
"""Arguments after a good configuration, and the line after `eenet: error: `."""


@pytest.mark.parametrize(("args", "expected"), IN_ARGUMENTS.items())
def test_wrong_arguments_are_one_line(args: str, expected: str, fit: Callable[..., str]) -> None:
    if "gpu" in args and torch.cuda.is_available():
        pytest.skip("has a GPU")
    assert fit(None, None, "--trainer.accelerator=cpu", *args.split(" ")) == f"eenet: error: {expected}"


BACKBONE = f"{NETWORK}.backbone"
CALLBACK = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitr": "x"}}
IN_FILES: list[tuple[str, Any, str]] = [
    ("trainer.max_epoch", 3, "trainer.max_epoch = 3: is no option of `eenet fit`; did you mean trainer.max_epochs?"),
    ("trainr", {"strategy": 1}, "trainr.strategy = 1: is no option of `eenet fit`; did you mean trainer.strategy?"),
    ("model.init_args.tradeoff", None, "model.init_args.tradeoff = None: must be float, not null"),
    ("data.init_args.batch_size", None, "data.init_args.batch_size = None: must be int, not null"),
    ("modle", {}, "modle = {}: is no option of `eenet fit`; did you mean model?"),
    (
        f"{BACKBONE}.init_args.dephts",
        {},
        f"{BACKBONE}.init_args.dephts = {{}}: is no option of `eenet fit`; see `eenet fit --help`",
    ),
    ("trainer", "x", "trainer = 'x': must hold keys and values"),
    (
        f"{BACKBONE}.init_args.num_clases",
        10,
        f"{BACKBONE}.init_args.num_clases = 10: is no argument of eenet.backbones.ViT; did you mean num_classes?",
    ),
    (f"{BACKBONE}.init_args.num_classes", "ten", f"{BACKBONE}.init_args.num_classes = 'ten': must be int"),
    (
        f"{NETWORK}.exits",
        [1, "x"],
        f"{NETWORK}.exits = [1, 'x']: must be list[int], list[str], dict[str, list[float]] or 'all'",
    ),
    (
        f"{BACKBONE}.class_path",
        "eenet.backbones.Vit",
        f"{BACKBONE} = 'eenet.backbones.Vit': cannot be imported (module 'eenet.backbones' has no attribute 'Vit'); "
        "did you mean eenet.backbones.ViT?",
    ),
    (
        "model.class_path",
        "my_routines.Mine",
        "model = 'my_routines.Mine': cannot be imported (No module named 'my_routines'); is its folder in PYTHONPATH?",
    ),
    (
        f"{BACKBONE}.class_path",
        "datamodules.Digits",
        f"{BACKBONE} = 'datamodules.Digits': must be a subclass of StagedBackbone",
    ),
    (
        "data.class_path",
        "datamodules.SplitData",
        "data = 'datamodules.SplitData': is abstract; give one of its subclasses",
    ),
    ("data.init_args", [1], "data.init_args = [1]: must hold keys and values"),
    (
        "model.tradeoff",
        1,
        "model = 'lightning_modules.JointExits': has keys beside class_path and init_args; move them under init_args",
    ),
    (
        "trainer.callbacks",
        [{"class_path": "lightning.pytorch.callbacks.RichModelSummary"}, CALLBACK],
        "trainer.callbacks.init_args.monitr = 'x': is no argument of lightning.pytorch.callbacks.EarlyStopping; "
        "did you mean monitor?",
    ),
    (
        "model.init_args.optimizer",
        {"class_path": "torch.optim.SGD", "init_args": {"lrr": 1}},
        "model.init_args.optimizer.init_args.lrr = 1: is no argument of torch.optim.SGD; did you mean lr?",
    ),
    (
        "model.init_args.optimizer",
        {"class_path": "torch.optim.SDG", "init_args": {"lr": 1}},
        "model.init_args.optimizer = 'torch.optim.SDG': cannot be imported "
        "(module 'torch.optim' has no attribute 'SDG'); did you mean torch.optim.SGD?",
    ),
]
"""Key, wrong value, and the line after `eenet: error: ` and before the place."""


@pytest.mark.parametrize(("key", "value", "expected"), IN_FILES, ids=lambda value: str(value)[:60])
def test_wrong_keys_and_values_of_files_are_one_line(
    key: str, value: Any, expected: str, fit: Callable[..., str]
) -> None:
    printed = fit(key, value)
    found, _, line = printed.removesuffix(")").rpartition(" (FILE, line ")
    assert found == f"eenet: error: {expected}"
    assert int(line) > 0


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("data", "data = None: must be given, best by a configuration: --config; `eenet list` prints the shipped ones"),
        ("data.class_path", "data.class_path = None: must be given, the path of a subclass of RunData"),
        ("model.class_path", "model.class_path = None: must be given, the path of a subclass of ExitRoutine"),
        (
            f"{BACKBONE}.class_path",
            f"{BACKBONE}.class_path = None: must be given, the path of a subclass of StagedBackbone",
        ),
        (
            f"{BACKBONE}.init_args.num_classes",
            f"{BACKBONE}.init_args.num_classes = None: must be given to eenet.backbones.ViT",
        ),
        ("model.init_args.network", "model.init_args.network = None: must be given to lightning_modules.JointExits"),
    ],
)
def test_what_is_missing_is_one_line(key: str, expected: str, fit: Callable[..., str]) -> None:
    assert fit(key, REMOVED) == f"eenet: error: {expected}"


def test_a_report_of_several_alternatives_is_read_to_the_end_of_the_first_that_goes_deep() -> None:
    report = """Parser key "a":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'A':
        Parser key "b":
          Expected a <class 'int'>. Got value: x
    - Problem with given class_path 'B':
        Option 'b' is not accepted
  Given value: {}"""
    assert deepest(report)[:3] == ("a.init_args.b", None, "Expected a <class 'int'>. Got value: x")
    assert deepest("nothing known")[:3] == ("", None, "nothing known")


def test_a_name_unlike_all_gets_no_advice() -> None:
    assert with_nearest("unrecognized arguments: --zzz", ["config"]) == "unrecognized arguments: --zzz"


def test_the_last_place_that_gives_a_key_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("data:\n  init_args:\n    seed: 1\n    root: here\n")
    second.write_text("data:\n  class_path: D\n  init_args: {seed: 2}\n")
    args = ["--config", str(first), f"--config={second}"]
    assert find_given(args, "data.init_args.seed") == Given(2, f" ({second}, line 3)")
    assert find_given(args, "data.init_args.root") == Given("here", f" ({first}, line 4)")
    assert find_given(args, "data") == Given("D", f" ({second}, line 2)")
    assert find_given([*args, "--data.seed=3"], "data.init_args.seed") == Given("3")
    assert find_given(["--batch-size", "5"], "batch_size") == Given("5")
    assert find_given(args, "data.init_args.nothing") is None


def test_the_parser_of_a_run_that_is_opened_refuses_in_one_line_too() -> None:
    with pytest.raises(UserError, match=r"trainer.max_epochs = 'x': must be int or null"):
        EenetCLI(args={"trainer": {"max_epochs": "x"}}, run=False)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("calibrate", "run = None: must be given; see `eenet calibrate --help`"),
        ("calibrate runs/x --budgt 0.5", "budgt = '0.5': is no option of `eenet calibrate`; did you mean budget?"),
        ("calibrate runs/x --delta abc", "delta = 'abc': must be float"),
        ("bench runs/x runs/y", "arguments = 'runs/y': is one too many; see `eenet bench --help`"),
        ("infer", "run, input, output = None: must be given; see `eenet infer --help`"),
        ("infer r --input x --output y.csv --batch-size x", "batch-size = 'x': must be int"),
        ("generate smollm2 --fill projct", "fill = 'projct': must be 'project' or 'recompute'; did you mean project?"),
        ("layers", "model, data, out = None: must be given; see `eenet layers --help`"),
        ("sweep --config digits/vit_jei_dnn --seeds x", "seeds = 'x': must be int"),
        ("features", "command = None: must be one of list, remove, verify"),
        ("features lst", "command = 'lst': must be one of list, remove, verify; did you mean list?"),
        ("features remove", "key = None: must be given; see `eenet features remove --help`"),
        ("export runs/x", "out = None: must be given; see `eenet export --help`"),
        ("compare", "runs = None: must be given; see `eenet compare --help`"),
        ("doctor --x", "x = '': is no option of `eenet doctor`; see `eenet doctor --help`"),
        (
            "fit",
            "data, model = None: must be given, best by a configuration: --config; "
            "`eenet list` prints the shipped ones",
        ),
        ("--config digits/vit_jei_dnn fit", "command = None: must come first, as in `eenet fit --config CONFIG`"),
    ],
)
def test_every_command_refuses_in_one_line(args: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, *args.split(" ")) == f"eenet: error: {expected}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer:\n  max_epochs: 3\n model: x\n", "line 3, column 2: did not find expected key; this is no YAML"),
        (
            "trainer:\n\tmax_epochs: 3\n",
            "line 2, column 1: found character that cannot start any token; this is no YAML",
        ),
        ("", "must hold keys and values, as `trainer:` and `model:`"),
        ("- a\n", "must hold keys and values, as `trainer:` and `model:`"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert failure(capsys, "fit", f"--config={path}") == f"eenet: error: config = '{path}': {expected}\n"


def test_a_configuration_is_read_from_its_text_too(tmp_path: Path) -> None:
    """Commands on a run give the parser the text of its `config.yaml`, longer than a file's name may be."""
    text = yaml.safe_dump({"model": {"names": ["a" * 300], "empty": {}}})
    (tmp_path / "config.yaml").write_text(text)
    expected = [("model.empty", {}), ("model.names", "a" * 300)]
    assert list(leaves(["--config", text])) == list(leaves([f"--config={tmp_path / 'config.yaml'}"])) == expected
