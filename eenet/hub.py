"""What a saved network is: `config.json`, `model.safetensors`, and a card with the curve of its operating points.

huggingface_hub's mixin finds, loads and uploads. The configuration is ours: the mixin's own replaces what is no JSON by
its default and knows nothing that was set later. So what is written is built again and compared with the network.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from eenet import __version__
from eenet.calibration import OperatingPoint
from eenet.described import describe
from eenet.errors import UserError, said
from eenet.network import EarlyExitNetwork
from eenet.parsing.refusals import Parser
from eenet.parsing.shipped import imports
from eenet.policies import Policy
from eenet.reading import read_json
from eenet.reporting import save_figure, write_json, write_text
from eenet.runs import check_trust

CONFIG, WEIGHTS, CARD, CURVE = "config.json", "model.safetensors", "README.md", "curve.png"

BASE = "backbone."
"""What the names of the weights begin with that belong to a base model and are not saved."""

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

An early-exit network: {{ exits }} exits on {{ backbone }}, {{ macs }} MACs when nobody leaves early.

```python
from eenet import EarlyExitNetwork

network = EarlyExitNetwork.from_pretrained("{{ repository }}")
routed = network.route(inputs, network.points[{{ first }}].policy)
```

| point | asked | validation accuracy % | validation MACs % |
| --- | --- | --- | --- |
{{ rows }}

{{ curve }}
"""


class Saved(
    ModelHubMixin, library_name="eenet", tags=["early-exit", "adaptive-computation"], model_card_template=TEMPLATE
):
    """A network as the mixin saves it.

    Args:
        network: The network.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the folder; the mixin's own configuration is left out."""
        return super().save_pretrained(save_directory, **{**options, "config": {}})

    def _save_pretrained(self, save_directory: Path) -> None:
        network, points = self.network, points_of(self.network)
        base = network.base_digest
        values = {
            "eenet": __version__,
            "network": without_downloads(describe(network)) if base is None else describe(network),
            "points": {name: point.to_dict() for name, point in points.items()},
            **({} if base is None else {"base_digest": base}),
        }
        kept = {
            name: value for name, value in network.state_dict().items() if base is None or not name.startswith(BASE)
        }
        state = {name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}
        made = make(values, type(network))
        check_same(network, made)
        fill(made, values, state)
        save_file(state, save_directory / WEIGHTS)
        write_json(save_directory / CONFIG, values)
        drawn = [(name, point.got) for name, point in points.items() if {"macs_fraction", "accuracy"} <= {*point.got}]
        if drawn:
            save_figure(curve(drawn), save_directory / CURVE)
        card = self.generate_model_card(
            title=save_directory.name,
            repository=save_directory.name,
            exits=network.num_exits,
            backbone=type(network.backbone).__name__,
            macs=f"{network.parts.full:,}",
            first=repr(next(iter(points), "NAME")),
            rows="\n".join(row(name, point) for name, point in points.items()) or "| none | | | |",
            curve=f"![Accuracy over cost]({CURVE})" if drawn else "",
        )
        write_text(save_directory / CARD, str(card))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
        options.pop("config", None)
        paths = [
            Path(model_id, name) if Path(model_id).is_dir() else Path(hf_hub_download(model_id, name, **options))
            for name in (CONFIG, WEIGHTS)
        ]
        values = read_json(paths[0])
        with imports(check_trust(values, paths[0])):
            return cls(fill(make(values, EarlyExitNetwork), values, load_file(paths[1])))


def fetch(name: str, kind: type, options: dict[str, Any]) -> Any:
    """The network of a folder or of a repository.

    Raises:
        UserError: There is none, it cannot be reached, it is of another kind, or names classes that are not trusted.
    """
    try:
        network = Saved.from_pretrained(name, **options).network
    except UserError:
        raise
    except Exception as error:
        if Path(name).is_dir():
            raise UserError("name", name, f"holds no network that `save_pretrained` wrote ({said(error)})") from error
        remedy = "there is no such folder, and the hub cannot be reached or has no such repository"
        raise UserError("name", name, f"{remedy} ({type(error).__name__})") from error
    if not isinstance(network, kind):
        raise UserError("name", name, f"holds a {type(network).__name__}, no {kind.__name__}")
    return network


def make(values: dict[str, Any], kind: type) -> Any:
    """A network from its configuration, without its weights."""
    parser = Parser(prog="eenet")
    parser.add_subclass_arguments(kind, "network", fail_untyped=False, required=True)
    with torch.random.fork_rng(devices=[]):
        return parser.instantiate_classes(parser.parse_object({"network": values["network"]})).network


def fill(made: Any, values: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
    """A network that was just made, with its weights and points."""
    base = values.get("base_digest")
    if base is not None and base != made.base_digest:
        raise UserError(
            "network.backbone", type(made.backbone).__name__, "has other weights than its base model has now"
        )
    own = {} if base is None else {name: value for name, value in made.state_dict().items() if name.startswith(BASE)}
    made.load_state_dict({**own, **state})
    made.points = {name: OperatingPoint.from_dict(point) for name, point in values["points"].items()}
    return made.eval()


def check_same(network: Any, other: Any) -> None:
    """Raise a `UserError` where a network has changed since it was made: what would be loaded is another."""
    for field in ("exit_stages", "boosted", "gradient_rescaling"):
        if getattr(network, field) != getattr(other, field):
            problem = f"was made with {getattr(other, field)} and has changed since; make the network with it"
            if field == "exit_stages":
                problem += ", or save the whole network with the point that drops exits among its `points`"
            raise UserError(f"network.{field}", getattr(network, field), problem)
    if network.gate.arguments() != other.gate.arguments():
        raise UserError("network.gate", network.gate.arguments(), "has changed since the network was made")


def points_of(network: Any) -> dict[str, OperatingPoint]:
    """The network's points as they are now; a policy is one without figures."""
    return {
        name: OperatingPoint(point) if isinstance(point, Policy) else point for name, point in network.points.items()
    }


def without_downloads(values: Any) -> Any:
    """A configuration whose models begin without weights, which are loaded afterwards."""
    if isinstance(values, dict):
        return {key: False if key == "pretrained" else without_downloads(value) for key, value in values.items()}
    return [without_downloads(value) for value in values] if isinstance(values, list) else values


def row(name: str, point: OperatingPoint) -> str:
    """A point's row in the card."""
    asked = ", ".join(f"{key} {value:g}" for key, value in point.asked.items())
    figures = [f"{100 * point.got[key]:.2f}" if key in point.got else "" for key in ("accuracy", "macs_fraction")]
    return f"| {' | '.join([name, asked, *figures])} |"


def curve(points: list[tuple[str, dict[str, Any]]]) -> Figure:
    """Validation accuracy over cost."""
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=72)
    axes = figure.add_subplot(xlabel="validation MACs, % of the full network", ylabel="validation accuracy, %")
    found = sorted((100 * got["macs_fraction"], 100 * got["accuracy"], name) for name, got in points)
    axes.plot([cost for cost, _, _ in found], [accuracy for _, accuracy, _ in found], "o-")
    for cost, accuracy, name in found:
        axes.annotate(name, (cost, accuracy), textcoords="offset points", xytext=(4, -10), fontsize=8)
    return figure
