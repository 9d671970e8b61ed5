"""Operating points of a run, and the file in which the run keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.calibration.chosen import ChosenOn
from eenet.calibration.conformal import Quantiles
from eenet.errors import UserError, command, said
from eenet.files import sha256
from eenet.gates import (
    ConfidenceGate,
    Gate,
    SaturationGate,
    SchedulerGate,
    StoppingGate,
    TreeStoppingGate,
    UncertaintyGate,
)
from eenet.network import EarlyExitNetwork
from eenet.policies import (
    BestWay,
    ClassThresholds,
    FixedExit,
    Patience,
    Policy,
    PredictedErrors,
    RandomExits,
    SequentialGates,
    Threshold,
)
from eenet.reading import read_json
from eenet.reporting import write_json
from eenet.runs.folder import RunFolder
from eenet.tree import Path as TreePath
from eenet.tree import path_shares

SCHEMA = 3

CALIBRATION = "calibration.json"
"""File of a run folder that `eenet calibrate` writes for the last checkpoint; see `eenet.runs.RunFolder.file`."""

POLICIES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (BestWay, ClassThresholds, FixedExit, Patience, PredictedErrors, RandomExits, SequentialGates, Threshold)
}
GATES = {
    cls.__name__: cls
    for cls in (ConfidenceGate, SaturationGate, SchedulerGate, StoppingGate, TreeStoppingGate, UncertaintyGate)
}


@dataclass(frozen=True)
class OperatingPoint:
    """A policy, and the gate it reads.

    Attributes:
        policy: Decides who leaves.
        gate: `None` for the network's own.
        path: Of a network whose tree branches, the path that every sample goes along; `None` where the policy chooses.
        kept: Numbers of the early exits that it has, in whose network they are numbered from 0 again; `None` for all.
        asked: What the point was chosen for, such as `{"budget": 0.5}`.
        got: What it reached on the validation split: `accuracy` and `macs_fraction` or `bitops_fraction`.
        conformal: Quantiles of conformal sets by mode and miscoverage, such as `("common", 0.1)`.
        chosen_on: The validation that chose it; `None` where nothing was chosen, as of learned gates.
    """

    policy: Policy
    gate: Gate | None = None
    asked: dict[str, float] = field(default_factory=dict)
    got: dict[str, float] = field(default_factory=dict)
    conformal: dict[tuple[str, float], Quantiles] = field(default_factory=dict)
    chosen_on: ChosenOn | None = None
    path: TreePath | None = None
    kept: tuple[int, ...] | None = None

    def network(self, network: EarlyExitNetwork) -> EarlyExitNetwork:
        """The network behind the point's gate, on the point's path, with the point's exits."""
        gate = None if self.gate is None else self.gate.to(next(network.parameters()).device)
        if self.kept is not None:
            return network.keeping(self.kept, gate)
        if self.path is not None:
            return network.along(self.path, gate)
        return network if gate is None else network.with_gate(gate)

    def own(self, values: Tensor, network: EarlyExitNetwork) -> Tensor:
        """Of values of every node of a network, `(nodes,)`, those of the point's network."""
        if self.kept is not None:
            return values[[*self.kept, -1]]
        return values if self.path is None else values[network.tree.along(self.path)]

    def put(self, own: Tensor, values: Tensor, network: EarlyExitNetwork) -> Tensor:
        """Values of every node of a network, `(nodes,)`, with others at the nodes of the point's network."""
        places = self.own(torch.arange(len(values)), network)
        return values.index_copy(0, places, own.to(values))

    def fields(self, leaving: Sequence[float], num_exits: int) -> dict[str, Any]:
        """What a row of results says of the point's own path, or of the exits that it has.

        Args:
            leaving: Shares of the samples by the exits of the point's network.
            num_exits: Of the whole network, by which `exit_fractions` count.
        """
        if self.kept is not None:
            found = dict(zip((*self.kept, num_exits - 1), leaving, strict=True))
            return {"kept": self.kept, "exit_fractions": [found.get(exit, 0.0) for exit in range(num_exits)]}
        return {} if self.path is None else {"paths": path_shares(self.path, leaving)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "policy": policy_to_dict(self.policy),
            "gate": None if self.gate is None else gate_to_dict(self.gate),
            "asked": self.asked,
            "got": self.got,
            "conformal": [
                {"mode": mode, "alpha": alpha, **found._asdict(), "values": found.values.tolist()}
                for (mode, alpha), found in self.conformal.items()
            ],
            "chosen_on": None if self.chosen_on is None else self.chosen_on.to_dict(),
            "path": self.path,
            "kept": self.kept,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OperatingPoint":
        """The point that `to_dict` wrote."""
        gate, chosen_on = values["gate"], values["chosen_on"]
        conformal = {
            (row["mode"], row["alpha"]): Quantiles(torch.tensor(row["values"]), row["rule"], row["fallbacks"])
            for row in values["conformal"]
        }
        return cls(
            policy_from_dict(values["policy"]),
            None if gate is None else gate_from_dict(gate),
            dict(values["asked"]),
            dict(values["got"]),
            conformal,
            None if chosen_on is None else ChosenOn(**chosen_on),
            *(None if values.get(field) is None else tuple(values[field]) for field in ("path", "kept")),
        )


@dataclass
class Calibration:
    """What a validation split says of a trained network.

    Attributes:
        checkpoint: SHA-256 of the checkpoint that was calibrated.
        samples: Size of the validation split.
        temperatures: Of every node, `(nodes,)`; probabilities are the softmax of logits divided by them.
        points: Operating points by name.
        doubts: Why the temperatures of some nodes are not to be relied on, see `eenet.calibration.Temperatures`.
    """

    checkpoint: str
    samples: int
    temperatures: Tensor
    points: dict[str, OperatingPoint]
    doubts: dict[int, str] = field(default_factory=dict)

    def add_to(self, path: Path) -> None:
        """Write the file with the points that it has for the same checkpoint; one of the same name is replaced.

        A file that cannot be read, as one of an older version, is replaced as a whole.
        """
        try:
            old = Calibration.load(path)
        except UserError:
            old = self
        if old.checkpoint == self.checkpoint:
            self.points = {**old.points, **self.points}
        self.save(path)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        values = {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint,
            "split": "val",
            "samples": self.samples,
            "temperatures": self.temperatures.tolist(),
            "doubts": [self.doubts.get(exit) for exit in range(len(self.temperatures))],
            "points": {name: point.to_dict() for name, point in self.points.items()},
        }
        write_json(path, values)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read a file that `save` wrote.

        Raises:
            UserError: It is not there, damaged, or of another schema.
        """
        remedy, again = "`eenet calibrate` writes it", "remove it, and `eenet calibrate` writes it again"
        try:
            values = read_json(path)
            if values["schema"] != SCHEMA:
                raise UserError("calibration", str(path), f"is of schema {values['schema']}, not {SCHEMA}; {again}")
            temperatures = torch.tensor(values["temperatures"])
            if (
                temperatures.shape != (len(values["doubts"]),)
                or not (temperatures > 0).all()
                or temperatures.isinf().any()
            ):
                raise ValueError("temperatures")
            points = {name: OperatingPoint.from_dict(point) for name, point in values["points"].items()}
            doubts = {exit: doubt for exit, doubt in enumerate(values["doubts"]) if doubt}
            return cls(values["checkpoint"], values["samples"], temperatures, points, doubts)
        except FileNotFoundError as error:
            raise UserError("calibration", str(path), f"there is no such file; {remedy}") from error
        except (OSError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError("calibration", str(path), f"is damaged ({said(error)}); {again}") from error

    @classmethod
    def of(cls, folder: Path, checkpoint: Path, names: str, network: EarlyExitNetwork | None = None) -> "Calibration":
        """What `eenet calibrate` found for a checkpoint of a run.

        Args:
            folder: Run folder.
            checkpoint: The checkpoint.
            names: Of the points that are asked for, for the error.
            network: Whose nodes the temperatures are to fit.

        Raises:
            UserError: Nothing, or for another checkpoint or network.
        """
        path = RunFolder(folder).file(CALIBRATION, checkpoint)
        if not path.is_file() and (folder / CALIBRATION).is_file():
            remedy = command("calibrate", folder, "--ckpt_path", checkpoint)
            raise UserError("point", names, f"was chosen for another checkpoint; run {remedy}")
        calibration = cls.load(path)
        if calibration.checkpoint != sha256(checkpoint):
            again = command("calibrate", folder)
            raise UserError("point", names, f"{path} is of another checkpoint; run {again} again")
        if network is not None and len(calibration.temperatures) != len(network.tree.nodes):
            wrong = f"{len(calibration.temperatures)} temperatures for {len(network.tree.nodes)} exits"
            again = command("calibrate", folder)
            raise UserError("calibration", str(path), f"is damaged ({wrong}); remove it, and {again} writes it again")
        return calibration

    def choose(self, names: str) -> dict[str, OperatingPoint]:
        """Some points by their names.

        Args:
            names: Separated by commas, or `all`.

        Raises:
            UserError: There is no point of that name.
        """
        chosen = list(self.points) if names == "all" else names.split(",")
        for name in chosen:
            if name not in self.points:
                raise UserError("point", name, f"the run has {', '.join(self.points) or 'none'}; see `eenet calibrate`")
        return {name: self.points[name] for name in chosen}


def point_name(policy: str, wish: str, value: float, placed: bool = False) -> str:
    """Name of a point that meets a wish: the policy goes before it unless it is the run's own.

    Args:
        policy: What decides.
        wish: What is asked for.
        value: Of the wish.
        placed: Whether exits may be dropped for it.

    Example:
        >>> point_name("own", "budget", 0.5), point_name("entropy", "budget", 0.5)
        ('budget-0.5', 'entropy-budget-0.5')
    """
    return ("" if policy == "own" else f"{policy}-") + f"{wish}-{value:g}" + ("-placed" if placed else "")


def check_names(values: Sequence[float], field: str) -> None:
    """Raise a `UserError` where two values are alike in the six digits of a point's name: one would be lost."""
    if len({f"{value:g}" for value in values}) < len(values):
        raise UserError(field, list(values), "two of them are one point's name, which has six digits; give one of them")


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """A policy as plain JSON values."""
    return {"class": type(policy).__name__, "arguments": policy.arguments()}


def policy_from_dict(values: Mapping[str, Any]) -> Policy:
    """The policy that `policy_to_dict` wrote; only classes of `POLICIES` are made."""
    return POLICIES[values["class"]](**values["arguments"])


def gate_to_dict(gate: Gate) -> dict[str, Any]:
    """A gate and its weights as plain JSON values."""
    weights = {name: weight.tolist() for name, weight in gate.state_dict().items()}
    return {"class": type(gate).__name__, "arguments": gate.arguments(), "weights": weights}


def gate_from_dict(values: Mapping[str, Any]) -> Gate:
    """The gate that `gate_to_dict` wrote; only classes of `GATES` are made."""
    gate = GATES[values["class"]](**values["arguments"])
    weights = {name: torch.tensor(weight) for name, weight in values["weights"].items()}
    gate.load_state_dict(weights)
    if any(weight.isnan().any() for weight in weights.values()):
        raise ValueError("a weight of its gate is not a number")
    return gate.eval().requires_grad_(False)
