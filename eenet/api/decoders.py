"""What runs a decoder's layers, from a model's or a run's name."""

from pathlib import Path
from typing import Any, cast

import torch

from eenet.api.opening import chosen_point, open_run
from eenet.backbones import Gpt
from eenet.backbones.huggingface import load_tokenizer
from eenet.backbones.tuned import tuned_folder
from eenet.decoding import (
    DecoderNetwork,
    Executor,
    ExitingExecutor,
    Fill,
    RoutedExecutor,
    SpeculativeExecutor,
    confidence_rule,
    early_exit,
    full_plan,
    parse_plan,
)
from eenet.decoding.executor import Keys, Prompt
from eenet.decoding.gating import GatedExecutor, load_gates
from eenet.errors import UserError


def open_executor(
    model: str,
    *,
    plan: str = "full",
    prompt_layers: Prompt = "full",
    keys: Keys = "projected",
    confidence: float | None = None,
    gates: str | None = None,
    fill: Fill = "project",
    point: str | None = None,
    speculate: str | None = None,
    drafts: int | None = None,
    checkpoint: str = "last",
    download: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> tuple[Executor, Any, dict[str, str]]:
    """What runs the layers that `generate` is asked to run, with the tokenizer and what decides; arguments are its own.

    Raises:
        UserError: No such model, run, point or device, or a plan that the model cannot run.
    """
    place = check_device(device)
    whole = (plan, confidence, gates, point, prompt_layers, keys) == ("full", None, None, None, "full", "projected")
    if speculate is not None and not whole:
        raise UserError("speculate", speculate, "the full model decides the text; leave plans, gates and points out")
    if drafts is not None and speculate is None:
        raise UserError("drafts", drafts, "are of --speculate, which says what drafts them")
    if Path(model, "config.yaml").is_file() and tuned_folder(model) is None:
        if (plan, confidence, gates, prompt_layers, keys) != ("full", None, None, "full", "projected"):
            raise UserError("plan", plan, "a run's exits decide which layers run; leave the options of plans out")
        if (device, dtype) != ("cpu", "float32"):
            raise UserError("device", device, "a run decides device and dtype; leave them out")
        if speculate is None:
            executor, tokenizer, chosen = open_decoder(model, point, fill, checkpoint)
        else:
            executor, tokenizer = open_exit(model, speculate, drafts, checkpoint)
            chosen = {"plan": str(full_plan(executor.gpt.num_stages)), "speculate": str(executor.plan)}
    else:
        if point is not None:
            raise UserError("point", point, "is for the folder of a run that trained exits on a decoder")
        gpt, tokenizer = open_model(model, download, place, dtype)
        layers = parse_plan(plan, gpt.num_stages)
        chosen = {"plan": str(layers)}
        if speculate is not None:
            executor = SpeculativeExecutor(gpt, parse_plan(speculate, gpt.num_stages), drafts)
            chosen["speculate"] = str(executor.plan)
        elif gates is not None:
            if (plan, confidence, prompt_layers, keys) != ("full", None, "full", "projected"):
                raise UserError("gates", gates, "decide which layers run; leave the options of plans out")
            executor = GatedExecutor(gpt, load_gates(gates, gpt)[0].to(place))
        elif confidence is None:
            executor = Executor(gpt, layers, prompt=prompt_layers, keys=keys)
        else:
            rule = confidence_rule(gpt, confidence)
            executor = ExitingExecutor(gpt, layers, rule, fill, prompt=prompt_layers, keys=keys)
    return executor, tokenizer, chosen


def check_device(name: str) -> torch.device:
    """A device of that name, or a `UserError` where this machine has none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError("device", name, "is not on this machine; `cpu` always is") from error


def open_model(model: str, download: bool, device: torch.device, dtype: str) -> tuple[Gpt, Any]:
    """A decoder, in evaluation mode on a device, and its tokenizer.

    Raises:
        UserError: No such model, or one that cannot leave out layers.
    """
    try:
        gpt = Gpt(task="tokens", pretrained=model, download=download, dtype=dtype)
        return gpt.eval().to(device), load_tokenizer(model, download)
    except UserError as error:
        field = "dtype" if error.field == "dtype" else "model"
        raise UserError(field, dtype if field == "dtype" else model, error.problem) from error


def open_exits(folder: str, checkpoint: str) -> Any:
    """A run that trained exits on a decoder, or a `UserError` where it trained none."""
    run = open_run(folder, read_data=False, checkpoint=checkpoint)
    if not isinstance(run.model.network, DecoderNetwork):
        raise UserError("model", folder, "is a run without a decoder; configs/bbc_headlines has some with one")
    if not run.model.network.exit_stages:
        raise UserError("model", folder, "is a run without exits; what it tunes is there when its training has ended")
    return run


def open_exit(folder: str, draft: str, drafts: int | None, checkpoint: str) -> tuple[SpeculativeExecutor, Any]:
    """What drafts with a trained exit of a run, and the tokenizer.

    Raises:
        UserError: The run trained no exits on a decoder, or none there.
    """
    run = open_exits(folder, checkpoint)
    network = run.model.network
    plan = parse_plan(draft, network.backbone.num_stages)
    depths = [stage + 1 for stage in network.exit_stages]
    if len(plan) not in depths or plan != early_exit(plan.num_layers, len(plan)):
        known = ", ".join(f"early:{depth}" for depth in depths)
        raise UserError("speculate", draft, f"the run's exits draft with {known}")
    head = network.inference_modules[depths.index(len(plan))]
    return SpeculativeExecutor(network.backbone, plan, drafts, head, network.decoder_costs), run.data.tokenizer


def open_decoder(folder: str, point: str | None, fill: Fill, checkpoint: str) -> tuple[Executor, Any, dict[str, str]]:
    """What generates with the exits of a run, the tokenizer, and which operating point decides.

    Raises:
        UserError: The run trained no exits on a decoder, or has no such point.
    """
    run = open_exits(folder, checkpoint)
    chosen = chosen_point(run, point)
    network = cast(DecoderNetwork, chosen.point.network(run.model.network))
    executor = RoutedExecutor(network, chosen.point.policy.to(run.device), fill)
    data: Any = run.data
    return executor, data.tokenizer, {"point": chosen.name}
