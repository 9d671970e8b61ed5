"""Seconds of the parts of a network, and budgets in milliseconds."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eenet.calibration import ChosenOn, OperatingPoint
from eenet.calibration.chooser import ATTEMPTS, Chooser, Clock, Split
from eenet.calibration.logits import LogitFile
from eenet.calibration.wishes import Wishes
from eenet.errors import UnmetError, UserError
from eenet.network import EarlyExitNetwork
from eenet.policies import Patience, Policy, Threshold
from eenet.profile import Seconds
from eenet.runs.clocked import find, keep
from eenet.runtime.clock import clock_parts
from tests._dummies import make_network

PROFILE = Seconds("cpu", "torch", 1, 1, (1e-3, 1e-3, 2e-3), (1e-4, 1e-4), (2e-4, 2e-4), (0.0, 5e-4), 4e-3)


def test_a_sample_pays_for_what_it_passes() -> None:
    expected = (1.3e-3, 2.6e-3, 1.3e-3 + 1.3e-3 + 5e-4 + 2e-3)
    assert PROFILE.per_sample == pytest.approx(expected)
    assert PROFILE.fractions().tolist() == pytest.approx([value / 4e-3 for value in expected])
    halves = dataclasses.replace(PROFILE, batch_size=2)
    assert halves.per_sample == pytest.approx([value / 2 for value in expected])
    assert halves.fractions().tolist() == pytest.approx(PROFILE.fractions().tolist())


@pytest.mark.parametrize("policy", [Threshold([0.5, 0.5]), Patience(1)])
@pytest.mark.parametrize("batch", [1, 4])
def test_parts_of_a_network_are_timed(policy: Policy, batch: int) -> None:
    found = clock_parts(make_network(exits=[0, 2]), policy, torch.randn(batch, 1, 8, 8), 2, "here")
    assert (len(found.segments), len(found.heads), len(found.gates)) == (3, 2, 2)
    assert min(*found.segments, *found.heads, *found.gates, found.full) > 0
    assert (min(found.hand_overs) > 0) == (batch > 1)
    assert Seconds.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_profiles_are_kept_by_their_conditions(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "profile.json", tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"weights")
    with pytest.raises(UserError, match="eenet bench RUN --profile"):
        find(path, checkpoint, "torch", 1, 1, "cpu")
    faster = dataclasses.replace(PROFILE, full=3e-3)
    for profile in (PROFILE, dataclasses.replace(PROFILE, batch_size=32), faster):
        keep(path, checkpoint, profile)
    assert find(path, checkpoint, "torch", 1, 1, "cpu") == faster
    assert find(path, checkpoint, "torch", 1, 32, "cpu").batch_size == 32
    with pytest.raises(UserError, match="was not measured"):
        find(path, checkpoint, "onnx", 1, 1, "cpu")
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(UserError, match="another checkpoint"):
        find(path, checkpoint, "torch", 1, 1, "cpu")
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        find(path, checkpoint, "torch", 1, 1, "cpu")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Exits that are right more often the later, with confidences that tell."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (400,), generator=generator)
    noise = torch.randn(400, 3, 10, generator=generator)
    logits = noise + torch.tensor([1.0, 2.5, 5.0])[:, None] * torch.nn.functional.one_hot(labels, 10)[:, None]
    file = LogitFile(400, tmp_path_factory.mktemp("logits"))
    file.append(logits)
    return Split(file, labels)


def chooser(split: Split, network: EarlyExitNetwork, routed: object, budget: float) -> Chooser:
    wishes = Wishes({"budget-ms": [budget]})
    clock = Clock(PROFILE, routed)  # type: ignore[arg-type]
    return Chooser(network, Threshold([0.5, 0.5]), "max_probability", wishes, split, ChosenOn("", "", 400), clock)


def taken(split: Split, network: EarlyExitNetwork, point: OperatingPoint) -> float:
    scores = torch.cat(list(split.logits.split(400)))[:, :2].softmax(-1).amax(-1)
    exits: Tensor = point.policy.exits(torch.zeros(400, 3), scores)
    return 1000 * torch.tensor(PROFILE.per_sample)[exits].mean().item()


def test_a_budget_in_milliseconds_is_met_by_the_most_accurate_setting(split: Split) -> None:
    network = make_network(exits=[0, 2])
    one = chooser(split, network, lambda point: taken(split, network, point), 3.0)
    point = one.point("budget-ms", 3.0)
    assert point.asked == {"budget-ms": 3.0}
    assert 2.5 < point.got["ms"] <= 3.0


def test_what_the_clock_says_is_what_counts(split: Split) -> None:
    network = make_network(exits=[0, 2])
    one = chooser(split, network, lambda point: 1.2 * taken(split, network, point), 3.0)
    point = one.point("budget-ms", 3.0)
    assert taken(split, network, point) <= 2.5
    assert point.got["ms"] <= 3.0
    with pytest.raises(UnmetError, match=f"4.* ms of the last of {ATTEMPTS} settings|leaves at the first exit"):
        chooser(split, network, lambda _: 4.0, 3.0).point("budget-ms", 3.0)
    with pytest.raises(UnmetError, match=r"budget-ms = 0\.5.*leaves at the first exit takes 1\.3 ms"):
        chooser(split, network, lambda _: 1.0, 0.5).point("budget-ms", 0.5)
