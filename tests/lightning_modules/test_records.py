"""What a test keeps of each sample gives what its logits would, over two processes as in one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits

from datamodules import Digits
from datamodules.base import Samples
from datamodules.image import Pixels
from eenet.calibration import Calibration, ChosenOn, OperatingPoint, Quantiles, prediction_sets, summarise_coverage
from eenet.gates import ConfidenceGate
from eenet.metrics import sample_statistics, summarise
from eenet.policies import Threshold
from eenet.reporting import gather_exits
from lightning_modules import DecoupledExits
from tests._dummies import make_network

pytestmark = pytest.mark.forks

TEMPERATURES = torch.tensor([0.5, 1.0, 0.7, 2.0], dtype=torch.float64)
QUANTILES = {
    ("common", 0.1): Quantiles(torch.tensor([0.9, 0.88, 0.9, 0.87])),
    ("per_exit", 0.2): Quantiles(torch.tensor([0.8, 1.0, 0.0, 0.9])),
}
SAMPLES = 128


class OddDigits(Digits):
    """Digits whose test split has 359 samples, which no two processes can halve."""

    def read(self) -> tuple[Samples, None]:
        digits = load_digits()
        pixels = torch.from_numpy(digits.images[:1793].astype(np.uint8)[:, None])
        return Samples(Pixels(pixels), digits.target[:1793].astype(np.int64), "some digits"), None


def judge(
    folder: Path, batches: float, data: type[Digits] = Digits, **arguments: Any
) -> tuple[DecoupledExits, dict[str, Any]]:
    seed_everything(0, verbose=False)
    routine = DecoupledExits(make_network(gate=ConfidenceGate), budgets=[0.5])
    with torch.no_grad():
        scores = routine.network(next(iter(data().loader("test")))[0]).scores
    early, chosen_on = Threshold(scores.median(0).values.tolist()), ChosenOn(routine.network_digest(), None, 9)
    points = {"early": OperatingPoint(early, conformal=QUANTILES, chosen_on=chosen_on)}
    routine.calibration = Calibration("0", 9, TEMPERATURES, points, {2: "smoothed"})
    routine.calibrated_points, routine.per_class = points, True
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, limit_test_batches=batches, **quiet, **arguments)
    trainer.test(routine, datamodule=data(eval_batch_size=32), verbose=False)
    return routine, json.loads((folder / "results.json").read_text())


def close(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected, rel=1e-5, abs=1e-6) if isinstance(expected, float) else expected)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoupledExits, dict[str, Any]]:
    return judge(tmp_path_factory.mktemp("alone"), SAMPLES // 32)


def test_the_results_are_those_of_all_logits(alone: tuple[DecoupledExits, dict[str, Any]]) -> None:
    routine, results = alone
    inputs, labels = (torch.cat(parts)[:SAMPLES] for parts in zip(*Digits().loader("test"), strict=True))
    with torch.no_grad():
        outputs = routine.network(inputs)
    exits = routine.calibrated_points["early"].policy.exits(outputs.logits.argmax(-1), outputs.scores)
    logits = gather_exits(outputs.logits, exits)
    assert len(exits.unique()) == 4
    (row,) = results["operating_points"]
    expected = summarise(sample_statistics(logits, labels))
    assert close({key: row[key] for key in expected}, expected)
    tempered = summarise(sample_statistics(logits / TEMPERATURES[exits].float()[:, None], labels))
    assert close(row["calibrated"], {key: tempered[key] for key in row["calibrated"]})
    for found, quantiles in zip(row["conformal"], QUANTILES.values(), strict=True):
        sets = prediction_sets(logits.softmax(-1), exits, quantiles.values)
        expected = summarise_coverage(sets.gather(1, labels[:, None])[:, 0], sets.sum(1), exits, 4)
        assert close({key: found[key] for key in ("coverage", "set_size", "exits")}, expected)
    assert row["per_class"]["support"] == torch.bincount(labels, minlength=10).tolist()
    assert [row["calibrated"]["doubt"] for row in results["exits"]] == [None, None, "smoothed", None]
    assert [row["calibrated"]["temperature"] for row in results["exits"]] == TEMPERATURES.tolist()
    assert all(not name.startswith("logits") for records in routine._routed.values() for name in records.names)


def test_two_processes_gather_what_one_keeps(alone: tuple[DecoupledExits, dict[str, Any]], tmp_path: Path) -> None:
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    _, results = judge(tmp_path, SAMPLES // 64, strategy=strategy, devices=2)
    assert close(results["operating_points"], alone[1]["operating_points"])
    assert close(results["exits"], alone[1]["exits"])


def test_no_sample_counts_twice_where_processes_have_unlike_many(tmp_path: Path) -> None:
    _, expected = judge(tmp_path / "one", 1.0, OddDigits)
    assert sum(expected["operating_points"][0]["per_class"]["support"]) == 359
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    _, results = judge(tmp_path / "two", 1.0, OddDigits, strategy=strategy, devices=2)
    assert close(results["operating_points"], expected["operating_points"])
    assert close(results["exits"], expected["exits"])
