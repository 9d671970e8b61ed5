"""Checkpoints: whose they are, and taking a backbone out of one."""

from pathlib import Path
from typing import Any

import eenet
from eenet.api.seen import origins, seen_before
from eenet.backbones import StagedBackbone
from eenet.backbones.weight_files import not_finite
from eenet.described import describe
from eenet.errors import UserError, some
from eenet.network import EarlyExitNetwork
from eenet.quantization import QuantizedBackbone
from eenet.rank_zero import rank_zero_warn
from eenet.runs import IDENTITY, RunFolder, read_checkpoint

_BACKBONE = "network.backbone."


def identity(method: str, network: EarlyExitNetwork, data: str | None) -> dict[str, Any]:
    """What a checkpoint says of its network, and of the data set it was trained on where that has a name."""
    return {
        "version": eenet.__version__,
        "method": method,
        "backbone": network.backbone.description(),
        "exits": network.exit_stages,
        "gate": {"class": type(network.gate).__name__, **network.gate.arguments()},
        "inference_modules": described_heads(network),
        "data": data,
    }


def described_heads(network: EarlyExitNetwork) -> list[dict[str, Any]] | None:
    """What the inference modules are made with, each once; `None` where one has no form in a configuration."""
    found: list[dict[str, Any]] = []
    try:
        for head in network.inference_modules:
            made = describe(head, placed=2)
            found += [made] if made not in found else []
    except UserError:
        return None
    return found


def check_identity(checkpoint: dict[str, Any], method: str, network: EarlyExitNetwork, data: str | None) -> None:
    """Refuse a checkpoint of another method, network or data set.

    Lightning hands a data module the state of its own class alone, so another class would not notice; nor would
    weights notice another measure of a gate. Checkpoints of before say nothing of gate and inference modules.

    Raises:
        UserError: The checkpoint is of another method, backbone, set of exits, gate, inference module or data set.
    """
    found, own = checkpoint.get(IDENTITY), identity(method, network, data)
    if not isinstance(found, dict):
        raise UserError("ckpt_path", None, "is no checkpoint of eenet")
    for field in ("method", "backbone", "exits", "gate", "inference_modules"):
        if None not in (found.get(field), own[field]) and found[field] != own[field]:
            raise UserError(
                "ckpt_path", found[field], f"is the checkpoint's {field}, the configuration asks for {own[field]!r}"
            )
    trained_on = found.get("data")
    if None not in (trained_on, data) and trained_on != data:
        raise UserError("data", data, f"the checkpoint was trained on {trained_on}; use the data it was made with")


def check_epochs(checkpoint: dict[str, Any], max_epochs: int | None) -> None:
    """Raise a `UserError` where a run is to be continued to an epoch that it has passed."""
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs < done:
        raise UserError("trainer.max_epochs", max_epochs, f"the checkpoint has trained for {done} epochs already")


def load_backbone(backbone: StagedBackbone, path: str, field: str = "model.backbone_checkpoint") -> None:
    """Load a backbone's weights from the checkpoint of any routine.

    Args:
        backbone: The backbone to fill; where it is quantized, the float one in it.
        path: A run's folder or a checkpoint file.
        field: The configuration field that holds the path.

    Raises:
        UserError: No such file, no checkpoint of eenet, of another backbone, or of weights that are not finite.
    """
    backbone = backbone.backbone if isinstance(backbone, QuantizedBackbone) else backbone
    file = RunFolder(Path(path)).last if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(field, path, f"there is no checkpoint {file}; train the backbone first with `eenet fit`")
    checkpoint = read_checkpoint(file, field, path)
    found = checkpoint[IDENTITY]["backbone"]
    wanted = backbone.description()
    if found != wanted:
        differences = ", ".join(
            f"{key} {found.get(key)!r} instead of {wanted.get(key)!r}"
            for key in found | wanted
            if found.get(key) != wanted.get(key)
        )
        raise UserError(field, path, f"holds another backbone: {differences}")
    state = checkpoint["state_dict"]
    own = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    if wrong := not_finite(own):
        raise UserError(field, path, f"its training diverged: it holds NaN or infinite weights: {some(wrong)}")
    try:
        backbone.load_state_dict(own)
    except RuntimeError as error:
        said = " ".join(str(error).split()).partition(": ")[2][:300]
        raise UserError(field, path, f"holds other weights than its description: {said}") from error


def warn_seen(data: Any, path: str) -> None:
    """Warn where validation samples trained the backbone, as far as the run tells that its path is in."""
    if not hasattr(data, "sample_ids"):
        return
    problem = seen_before(data, origins({"model": {"init_args": {"backbone_checkpoint": path}}}))
    if problem is not None:
        rank_zero_warn(f"data = {data.name}: {problem}")
