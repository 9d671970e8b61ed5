"""What TensorBoard shows of a run, read back from its event files as TensorBoard reads them."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import backend_context, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest

from eenet.cli.main import main
from eenet.reporting import exits_over_training_figure
from tests.cli.test_cli import QUIET, tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, _blank_figures: Callable[..., None]) -> Path:
    """A backbone and JEI-DNN on it, trained and tested; the figures of the second are drawn."""
    folder = tmp_path_factory.mktemp("runs")
    joint = {"backbone_checkpoint": str(folder / "backbone"), "warmup_epochs": 1, "phase_batches": 2}
    for name, method, arguments in (("backbone", "BackboneTraining", {}), ("joint", "JointExits", joint)):
        config = tiny(folder / f"{name}.yaml", method, folder / name, **arguments)
        with pytest.MonkeyPatch.context() as patch:
            if name == "joint":
                patch.setattr(Figure, "draw", _blank_figures)
            main(["fit", "--config", str(config), "--trainer.logger=true", *QUIET])
            main(["test", "--config", str(folder / name / "config.yaml"), *QUIET])
    return folder


@pytest.fixture(scope="module")
def joint(runs: Path) -> EventAccumulator:
    events = EventAccumulator(str(runs / "joint"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return events.Reload()


def test_scalars_and_figures(joint: EventAccumulator) -> None:
    scalars, images = joint.Tags()["scalars"], joint.Tags()["images"]
    names = ("exit_0", "exit_3", "learned")
    wanted = [f"val/{key}/{name}" for key in ("accuracy", "nll", "ece", "macs_fraction") for name in names]
    wanted += ["val/share_leaving/learned/exit_0", "train/phase", "train/loss/warmup", "train/loss/gates"]
    assert set(wanted) <= set(scalars)
    assert "hp_metric" not in scalars
    figures = {f"{split}/{name}" for split in ("val", "test") for name in ("accuracy_cost", "exit_histogram")}
    assert figures | {"val/reliability", "test/reliability"} <= set(images)
    assert joint.Images("test/reliability")[-1].step == joint.Images("val/reliability")[-1].step > 0
    for name in figures:
        image = np.asarray(Image.open(BytesIO(joint.Images(name)[-1].encoded_image_string)))
        assert image.std() > 10


def test_exits_have_a_colour_each_over_the_whole_training(runs: Path, joint: EventAccumulator) -> None:
    saved = torch.load(runs / "joint" / "checkpoints" / "last.ckpt", weights_only=True)
    history = saved["callbacks"]["TensorBoardReport"]["history"]
    for key in ("accuracy", "nll"):
        for exit in range(4):
            values = [event.value for event in joint.Scalars(f"val/{key}/exit_{exit}")]
            assert [rows[exit][key] for _, rows in history] == pytest.approx(values)
    accuracy, nll = exits_over_training_figure(history).axes
    assert len({line.get_color() for line in accuracy.lines}) == 4
    assert [line.get_color() for line in nll.lines] == [line.get_color() for line in accuracy.lines]
    for exit, line in enumerate(accuracy.lines):
        assert list(line.get_xdata()) == [step for step, _ in history]
        assert list(line.get_ydata()) == [100 * rows[exit]["accuracy"] for _, rows in history]
    assert [event.step for event in joint.Images("val/exits")] == [history[-1][0]]


def test_a_validation_alone_is_drawn_at_the_step_of_what_was_validated(runs: Path, tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.yaml"
    shutil.copytree(runs / "backbone", config.parent, ignore=shutil.ignore_patterns("events*"))
    main(["validate", "--config", str(config), *QUIET])
    events = EventAccumulator(str(config.parent)).Reload()
    assert {image.step for tag in ("val/exits", "val/reliability") for image in events.Images(tag)} == {12}


def test_every_chart_of_the_layout_shows_what_it_says(joint: EventAccumulator) -> None:
    layout = layout_pb2.Layout()
    layout.ParseFromString(joint.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Training", "Exits", "Routed", "Calibration"]
    shown = {}
    for category in layout.category:
        for chart in category.chart:
            patterns = [re.compile(tag) for tag in chart.multiline.tag]
            shown[category.title, chart.title] = {
                tag for tag in joint.Tags()["scalars"] if any(pattern.match(tag) for pattern in patterns)
            }
    assert all(shown.values())
    assert shown["Exits", "accuracy of each exit"] == {f"val/accuracy/exit_{exit}" for exit in range(4)}
    assert shown["Routed", "accuracy"] == {"val/accuracy/learned"}
    assert shown["Calibration", "ECE, routed"] == {"val/ece/learned"}


def test_a_test_leaves_no_charts_of_one_dot_and_other_loggers_have_its_figures(runs: Path, tmp_path: Path) -> None:
    events = EventAccumulator(str(runs / "joint"), size_guidance={"scalars": 0}).Reload()
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("test/")] == []
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    main(["test", str(runs / "joint"), *QUIET, f"--trainer.logger={json.dumps(logger)}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    (row,) = csv.DictReader(metrics.open())
    results = json.loads((runs / "joint" / "results.json").read_text())
    assert float(row["test/accuracy/exit_0"]) == pytest.approx(results["exits"][0]["accuracy"])
    assert float(row["test/macs_fraction"]) == pytest.approx(results["operating_points"][0]["macs_fraction"])


def test_the_text_is_the_saved_configuration(runs: Path, joint: EventAccumulator) -> None:
    text = joint.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```")) == yaml.safe_load(
        (runs / "joint" / "config.yaml").read_text()
    )


def test_the_hparams_tab_compares_runs_of_different_methods(runs: Path) -> None:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(runs)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(runs))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(runs)))
    request = RequestContext()
    found = context.hparams_metadata(request, "")
    shown = context.experiment_from_metadata(
        request, "", True, found, context.hparams_from_data_provider(request, "", None)
    )
    figures = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece", "macs_fraction")
    metrics = {f"{split}/{name}" for split in ("val", "test") for name in figures}
    assert {info.name.tag for info in shown.metric_infos} == metrics
    assert {"seed", "model", "model.network.backbone.overrides.depth", "model.warmup_epochs"} <= {
        info.name for info in shown.hparam_infos
    }
    listed = list_session_groups.Handler(
        request, context, "", ListSessionGroupsRequest(allowed_statuses=[1, 2, 3], slice_size=10)
    ).run()
    rows = {group.sessions[0].name: group for group in listed.session_groups}
    assert set(rows) == {"backbone/hparams", "joint/hparams"}
    for name in ("backbone", "joint"):
        row = rows[f"{name}/hparams"]
        expected = json.loads((runs / name / "results.json").read_text())["operating_points"][0]
        values = {value.name.tag: value.value for value in row.metric_values}
        for key in ("accuracy", "macs_fraction"):
            assert values[f"test/{key}"] == pytest.approx(expected[key])
    assert rows["joint/hparams"].hparams["model"].string_value == "JointExits"
    assert rows["joint/hparams"].hparams["model.warmup_epochs"].number_value == 1
