from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eenet.calibration import (
    Calibration,
    OperatingPoint,
    Quantiles,
    prediction_sets,
    summarise_coverage,
    trust,
    trust_records,
)
from eenet.errors import UserError
from eenet.files import sha256
from eenet.gates import ConfidenceGate, Gate, SchedulerGate, UncertaintyGate
from eenet.metrics import sample_statistics, summarise
from eenet.policies import FixedExit, Patience, Policy, RandomExits, SequentialGates, Threshold
from eenet.tree import Tree

POLICIES = [FixedExit(1), Patience(2), RandomExits([0.5, 0.5]), SequentialGates(-0.25), Threshold([0.1, float("inf")])]
GATES = [None, ConfidenceGate(2, "margin"), SchedulerGate(2, 4), UncertaintyGate(2)]


def calibration(points: dict[str, OperatingPoint]) -> Calibration:
    return Calibration("abc", 100, torch.tensor([1.5, 0.7, 2.0]), points)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: type(gate).__name__)
def test_points_survive_the_file(policy: Policy, gate: Gate | None, tmp_path: Path) -> None:
    fallbacks = [{"exit": 1, "samples": 7, "instead": "whole set"}]
    quantiles = {
        ("per_exit", 0.1): Quantiles(torch.tensor([0.25, 0.5, 1.0]), "textbook", fallbacks),
        ("per_class", 0.1): Quantiles(torch.tensor([[0.25, 0.5]])),
    }
    point = OperatingPoint(policy, gate, {"budget": 0.5}, {"accuracy": 0.9}, quantiles)
    calibration({"p": point}).save(tmp_path / "c.json")
    found = Calibration.load(tmp_path / "c.json")
    assert found.temperatures.tolist() == calibration({}).temperatures.tolist()
    assert (found.checkpoint, found.samples) == ("abc", 100)
    loaded = found.points["p"]
    assert loaded.policy.arguments() == policy.arguments()
    assert (loaded.asked, loaded.got) == (point.asked, point.got)
    assert list(loaded.conformal) == list(quantiles)
    for key, found_quantiles in loaded.conformal.items():
        assert torch.equal(found_quantiles.values, quantiles[key].values)
        assert found_quantiles[1:] == quantiles[key][1:]
    if gate is None:
        assert loaded.gate is None
    else:
        logits = torch.randn(5, 2, 4)
        assert loaded.gate is not None
        torch.testing.assert_close(loaded.gate(logits), gate(logits))


def test_points_are_chosen_by_name() -> None:
    both = calibration({"a": OperatingPoint(FixedExit()), "b": OperatingPoint(Patience())})
    assert list(both.choose("b")) == ["b"]
    assert list(both.choose("b,a")) == ["b", "a"]
    assert list(both.choose("all")) == ["a", "b"]
    with pytest.raises(UserError, match="the run has a, b"):
        both.choose("c")


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"schema": 99}', '{"schema": 2, "points": {"a": {}}}', "\xff", "[" * 10**5]
)
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="`eenet calibrate` writes it again") as refused:
        Calibration.load(tmp_path / "c.json")
    assert str(refused.value).count("c.json") == 1
    with pytest.raises(UserError, match="no such file"):
        Calibration.load(tmp_path / "none.json")


def test_temperatures_of_another_network_are_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    replace(calibration({}), checkpoint=sha256(checkpoint)).save(tmp_path / "calibration.json")
    networks: list[Any] = [SimpleNamespace(tree=Tree.chain(exits)) for exits in (3, 2)]
    assert len(Calibration.of(tmp_path, checkpoint, "all", networks[0]).temperatures) == 3
    with pytest.raises(UserError, match="3 temperatures for 2 exits"):
        Calibration.of(tmp_path, checkpoint, "all", networks[1])


def test_trust_tempers_each_sample_by_its_own_exit() -> None:
    logits, labels = 3 * torch.randn(50, 4), torch.randint(0, 4, (50,))
    exits, temperatures = torch.randint(0, 3, (50,)), torch.tensor([1.0, 2.0, 4.0])
    point = OperatingPoint(FixedExit(), conformal={("common", 0.1): Quantiles(torch.full((3,), 2.0))})
    records = trust_records(point, temperatures, logits, exits, labels)
    row = trust(point, **records, exits=exits, labels=labels, num_exits=3)
    by_hand = torch.stack([logits[i] / temperatures[exit] for i, exit in enumerate(exits.tolist())])
    assert row["calibrated"]["nll"] == pytest.approx(summarise(sample_statistics(by_hand, labels))["nll"])
    assert row["conformal"][0]["coverage"] == 1
    assert row["conformal"][0]["set_size"] == 4


def test_sets_of_classes_are_judged_class_by_class() -> None:
    logits, labels = torch.randn(60, 3), torch.arange(60) % 3
    fallbacks = [{"class": 2, "samples": 1, "instead": "whole set"}]
    found = Quantiles(torch.tensor([[0.3, 0.6, 1.0]]), "textbook", fallbacks)
    point, exits = OperatingPoint(FixedExit(), conformal={("per_class", 0.1): found}), torch.zeros(60, dtype=torch.long)
    records = trust_records(point, torch.ones(2), logits, exits, labels)
    (row,) = trust(point, **records, exits=exits, labels=labels, num_exits=2)["conformal"]
    held = 1 - logits.softmax(1) <= found.values
    assert (row["rule"], row["fallbacks"]) == ("textbook", fallbacks)
    for label, by_class in enumerate(row["classes"]):
        assert by_class["coverage"] == held[labels == label, label].double().mean()
    assert row["classes"][2]["coverage"] == 1


def test_records_of_batches_are_those_of_all_samples() -> None:
    logits, labels, exits = 3 * torch.randn(50, 4), torch.randint(0, 4, (50,)), torch.randint(0, 3, (50,))
    quantiles = {
        ("common", 0.1): Quantiles(torch.tensor([0.5, 0.9, 0.7])),
        ("per_exit", 0.2): Quantiles(torch.tensor([0.2, 1.0, 0.0])),
    }
    point, temperatures = OperatingPoint(FixedExit(), conformal=quantiles), torch.tensor([0.5, 1.0, 2.0])
    batches = [
        trust_records(point, temperatures, *parts)
        for parts in zip(*(x.split(16) for x in (logits, exits, labels)), strict=True)
    ]
    records = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    row = trust(point, **records, exits=exits, labels=labels, num_exits=3)
    probabilities = logits.softmax(-1)
    for found, chosen in zip(row["conformal"], quantiles.values(), strict=True):
        sets = prediction_sets(probabilities, exits, chosen.values)
        expected = summarise_coverage(sets.gather(1, labels[:, None])[:, 0], sets.sum(1), exits, 3)
        assert {key: found[key] for key in expected} == expected


def test_doubts_of_temperatures_are_kept(tmp_path: Path) -> None:
    Calibration("0", 9, torch.tensor([1.0, 0.5, 2.0]), {}, {1: "smoothed"}).save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json").doubts == {1: "smoothed"}
