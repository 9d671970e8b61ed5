"""Points that drop exits which cost more than they save."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eenet.calibration import Calibration, ChosenOn, OperatingPoint
from eenet.calibration.candidates import Candidate, Split, candidates
from eenet.calibration.chooser import Chooser, Clock, check_wishes
from eenet.calibration.logits import LogitFile
from eenet.calibration.placing import place
from eenet.calibration.wishes import Wishes
from eenet.connections import ZeroTimeWaste
from eenet.errors import UserError
from eenet.gates import ConfidenceGate, StoppingGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Patience, SequentialGates, Threshold
from eenet.profile import Seconds
from tests._dummies import make_network

DEAR = Seconds("cpu", "torch", 1, 1, (1e-3,) * 4, (0.1e-3, 2e-3, 0.1e-3), (0.1e-3,) * 3, (0.0,) * 3, 4e-3)
"""A clock by which the head in the middle takes as long as half of the network."""


@pytest.fixture(scope="module")
def network() -> EarlyExitNetwork:
    torch.manual_seed(0)
    return make_network(exits=[0, 1, 2])


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (300,), generator=generator)
    noise = torch.randn(300, 4, 10, generator=generator)
    right = torch.nn.functional.one_hot(labels, 10)[:, None]
    file = LogitFile(300, tmp_path_factory.mktemp("logits"))
    file.append(noise + torch.tensor([2.0, 2.5, 3.0, 5.0])[:, None] * right)
    return Split(file, labels)


@pytest.mark.parametrize("gate", [None, ConfidenceGate(2, "margin")])
@pytest.mark.parametrize("policy", [Threshold([0.3, -0.2]), SequentialGates(), Patience(1)])
def test_a_network_with_fewer_exits_is_the_one_that_never_had_the_others(
    network: EarlyExitNetwork, gate: ConfidenceGate | None, policy: Threshold
) -> None:
    inputs = torch.randn(20, 1, 8, 8)
    found, built = network.keeping([0, 2], gate), make_network(exits=[0, 2])
    weights = {name.replace("modules.2.", "modules.1."): value for name, value in network.state_dict().items()}
    own = {key: weights.pop(key)[[0, 2]] for key in ("gate.weight", "gate.bias")}
    built.load_state_dict({name: value for name, value in (weights | own).items() if name in built.state_dict()})
    built = built if gate is None else built.with_gate(gate)
    assert torch.equal(found(inputs).logits, built(inputs).logits)
    routed, expected = found.route(inputs, policy), built.route(inputs, policy)
    assert torch.equal(routed.exits, expected.exits)
    assert torch.equal(routed.logits, expected.logits)
    whole = network if gate is None else network.with_gate(ConfidenceGate(3, "margin"))
    assert found.costs == built.costs == whole.parts.keeping([0, 2])


def chosen(network: EarlyExitNetwork, split: Split, wishes: Wishes) -> OperatingPoint:
    def routed(point: OperatingPoint) -> float:
        parts = DEAR if point.kept is None else DEAR.keeping(point.kept)
        scores = torch.cat(list(split.logits.split(300))).softmax(-1).amax(-1)
        exits: Tensor = point.policy.exits(
            torch.zeros(300, len(parts.segments)), point.own(scores.T, network).T[:, :-1]
        )
        return 1000 * torch.tensor(parts.per_sample)[exits].mean().item()

    clock = Clock(DEAR, routed)
    chooser = Chooser(network, Threshold([0.0] * 3), "max_probability", wishes, split, ChosenOn("", "", 300), clock)
    ((wish, value),) = wishes
    return chooser.point(wish, value)


def test_an_exit_that_costs_more_than_it_saves_is_dropped(network: EarlyExitNetwork, split: Split) -> None:
    asked = {"budget-ms": [3.0]}
    point, all_exits = (chosen(network, split, Wishes(asked, place=place)) for place in (True, False))
    assert point.kept is not None
    assert 1 not in point.kept
    assert point.asked == {"budget-ms": 3.0, "place": 1.0}
    assert point.got["accuracy"] > all_exits.got["accuracy"] + 0.05
    assert point.got["ms"] <= 3.0


@pytest.mark.parametrize("budget", [0.5, 0.8])
def test_no_exit_more_and_none_fewer_would_do_better(network: EarlyExitNetwork, split: Split, budget: float) -> None:
    (candidate,) = candidates(network, Threshold([0.0] * 3), "max_probability", split)
    chooser = Chooser(
        network, Threshold([0.0] * 3), "max_probability", Wishes({"budget": [budget]}), split, ChosenOn("", "", 300)
    )

    def rank(one: Candidate) -> tuple[float, float, float]:
        return chooser.judge(one, "macs", "budget", budget).rank

    found = place(candidate, rank)
    every = [candidate.keeping(kept) for number in (1, 2, 3) for kept in combinations(range(3), number)]
    assert rank(found) == max(map(rank, every))


def test_a_point_speaks_of_the_exits_that_it_has(network: EarlyExitNetwork, split: Split, tmp_path: Path) -> None:
    point = chosen(network, split, Wishes({"budget-ms": [3.0]}, place=True))
    kept = list(point.kept or ())
    Calibration("", 300, torch.ones(4), {"fast": point}).save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json").points["fast"]
    assert again.kept == point.kept
    assert again.network(network).exit_stages == [network.exit_stages[exit] for exit in kept]
    assert again.own(torch.arange(4), network).tolist() == [*kept, 3]
    leaving = [1 / (len(kept) + 1)] * (len(kept) + 1)
    spread = again.fields(leaving, 4)["exit_fractions"]
    assert [exit for exit, share in enumerate(spread) if share] == [*kept, 3]
    assert sum(spread) == pytest.approx(1)


def test_a_network_that_lost_exits_is_saved_whole_with_its_point(network: EarlyExitNetwork, tmp_path: Path) -> None:
    point = OperatingPoint(Threshold([0.3, 0.1]), ConfidenceGate(2), kept=(0, 2))
    with pytest.raises(UserError, match=r"with the point that drops exits among its `points`"):
        point.network(network).save_pretrained(tmp_path / "fewer")
    network.points = {"fast": point}
    network.save_pretrained(tmp_path / "whole")
    again = EarlyExitNetwork.from_pretrained(tmp_path / "whole")
    inputs = torch.randn(20, 1, 8, 8)
    found = again.points["fast"].network(again).route(inputs, again.points["fast"].policy)
    expected = point.network(network).route(inputs, point.policy)
    assert torch.equal(found.exits, expected.exits)
    assert torch.equal(found.logits, expected.logits)


def test_exits_that_hang_together_are_not_placed(network: EarlyExitNetwork) -> None:
    wishes = Wishes({"budget": [0.5]}, place=True)
    with pytest.raises(UserError, match=r"leaves out exits one by one, for own.* and not for stopping"):
        check_wishes(network, "stopping", wishes)
    with pytest.raises(UserError, match="read nothing of each other"):
        check_wishes(make_network(exits=[0, 2], connection=ZeroTimeWaste), "entropy", wishes)
    with pytest.raises(UserError, match="the network has 1"):
        check_wishes(make_network(exits=[1]), "entropy", wishes)
    remembering = network.with_gate(StoppingGate(3, 10))
    with pytest.raises(UserError, match="not for StoppingGate"):
        check_wishes(remembering, "own", wishes)
    check_wishes(remembering, "entropy", wishes)
    with pytest.raises(UserError, match="certified for all exits"):
        check_wishes(network, "entropy", Wishes({"risk": [0.1]}, place=True))
