"""What a GPU makes of routed networks, section by section; `benchmarks/gpu.sh` runs all within a time limit.

    PYTHONPATH=. python benchmarks/gpu.py correctness --out runs/gpu   # one section, into runs/gpu/correctness.json
    PYTHONPATH=. python benchmarks/gpu.py table --out runs/gpu         # what was found; status 1 if anything was wrong

Sections need torch, NumPy and this repository; `jei_dnn` needs Lightning and scikit-learn, `decoding` transformers. A
section whose library is missing says so. Networks are random: nothing here says anything of accuracy.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_networks import DEVICE, TOLERANCES, Found, Transformer, agrees, half_leave, images, make_network
from torch import Tensor
from torch.nn import functional as F

from eenet.gates import ConfidenceGate, UncertaintyGate
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.objectives import (
    best_exits,
    gate_loss,
    gate_targets,
    positive_weights,
    warmup_weights,
    weighted_sum_loss,
)
from eenet.policies import Patience, Policy, SequentialGates, Threshold
from eenet.quantization import QuantizedNetwork
from eenet.routing import Routed, Step, make_steps, route
from eenet.routing.steps import Result
from eenet.runtime.contenders import (
    Contender,
    device_name,
    full_network,
    nobody_leaves,
    race,
    routed_network,
)
from eenet.runtime.stopwatch import synchronise, time_rounds


def correctness(tiny: bool) -> list[Found]:
    """Routed equals gathered: policies, batch sizes and types; paths of several widths; and the CPU's logits."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = list[Found]()
    for dtype in (torch.float32, torch.bfloat16):
        near, kind = TOLERANCES[dtype], str(dtype).removeprefix("torch.")
        network = make_network(tiny, dtype=dtype)
        for policy in (half_leave(network), *([Patience(1), Threshold([2.0] * 3)] if dtype == torch.float32 else [])):
            for batch in (1, 7, 16 if tiny else 64):
                found = agrees(network, policy, images(network, batch), near)
                rows.append({"what": f"{type(policy).__name__} {kind}", **found})
    gates = make_network(tiny, UncertaintyGate)
    with torch.no_grad():
        learned = SequentialGates(-gates(images(gates, 64)).scores.median().item())
    rows.append({"what": "SequentialGates float32", **agrees(gates, learned, images(gates, 16), 1e-3)})
    torch.manual_seed(0)
    tree = QuantizedNetwork(Transformer(16, 2, 8, 4), [0], widths=[32, 4]).eval()
    _ = tree.costs
    tree.double().to(DEVICE).calibrate([images(tree, 32)])
    rows.append({"what": "PredictedErrors float64", **agrees(tree, tree.policy(32, 0.0), images(tree, 16), 1e-6)})
    network = make_network(tiny)
    inputs = images(network, 4)
    with torch.no_grad():
        here = network(inputs).logits.cpu()
        expected = network.cpu()(inputs.cpu()).logits
    error = ((here - expected).abs().max() / expected.std()).item()
    rows.append({"what": "all exits as on the CPU", "samples": 4, "error": error, "correct": error < 1e-2})
    return rows


def features(tiny: bool) -> list[Found]:
    """An epoch of JEI-DNN's warm-up and one of its gates from features that are on the device, in plain torch."""
    network = make_network(tiny, UncertaintyGate).requires_grad_(True)
    for head in network.heads:
        torch.nn.utils.vector_to_parameters(
            torch.zeros(sum(p.numel() for p in head.parameters())).to(DEVICE), head.parameters()
        )
    samples, dim, exits = 512 if tiny else 50_000, network.backbone.feature_dims[0], network.num_exits
    labels = torch.randint(10, (samples,), device=DEVICE)
    known = torch.randn(samples, dim, device=DEVICE)
    known[:, :10] += 4 * F.one_hot(labels, 10)
    costs = network.costs.fractions().to(DEVICE, torch.float32)
    rows = []
    for batch in (64,) if tiny else (64, 1024):
        optimizer = torch.optim.SGD([*network.inference_modules.parameters(), *network.gate.parameters()], lr=0.02)
        for phase in ("warmup", "gates"):
            synchronise(DEVICE)
            start, losses = time.perf_counter(), list[Tensor]()
            for chosen in torch.randperm(samples, device=DEVICE).split(batch):
                own, true = known[chosen], labels[chosen]
                logits = network.exit_logits(ExitFeatures([own] * (exits - 1), 4 * own[:, :10]))
                if phase == "warmup":
                    loss = weighted_sum_loss(logits[:, :-1], true, warmup_weights(exits).to(logits))
                else:
                    targets = gate_targets(best_exits(logits.detach(), true, costs, 0.1), exits - 1)
                    weights = positive_weights(targets.sum(0), len(targets))
                    loss = gate_loss(network.gate(logits[:, :-1].detach()), targets, weights, rarer=True)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            synchronise(DEVICE)
            seconds, means = time.perf_counter() - start, torch.stack(losses)
            first, last = means[: len(means) // 4].mean().item(), means[-len(means) // 4 :].mean().item()
            row = {"phase": phase, "batch": batch, "samples_per_second": samples / seconds, "loss": [first, last]}
            rows.append({**row, "correct": bool(means.isfinite().all()) and (phase == "gates" or last < first)})
    return rows


def jei_dnn(tiny: bool) -> list[Found]:
    """Three epochs of JEI-DNN on the digits from stored features, by Lightning: a warm-up, modules and gates."""
    from lightning.pytorch import Trainer

    from datamodules import Digits
    from lightning_modules import JointExits

    torch.manual_seed(0)
    network = EarlyExitNetwork(Transformer(16 if tiny else 128, 4, 8, 2, channels=1))
    routine = JointExits(network, features="memory", warmup_epochs=1, phase_batches=2)
    kind = "gpu" if DEVICE.type == "cuda" else "cpu"
    quiet: Found = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=kind, devices=1, max_epochs=3, default_root_dir=folder, enable_checkpointing=False, **quiet
        )
        start = time.perf_counter()
        trainer.fit(routine, datamodule=Digits(batch_size=64))
    point = routine.results["operating_points"][0]
    figures = {key: point[key] for key in ("accuracy", "macs_fraction")}
    return [{"seconds": time.perf_counter() - start, **figures, "correct": 0 < figures["macs_fraction"] <= 1}]


def timed(network: EarlyExitNetwork, contenders: Sequence[Contender], tiny: bool, **more: Any) -> list[Found]:
    """Rows of `eenet.runtime.contenders.race` for every batch size."""
    rows = []
    for size in (1, 8) if tiny else (1, 32, 256, 1024):
        batches = list(images(network, max(2 * size, 8 if tiny else 64)).split(size))
        for row in race(contenders, batches, size, 2 if tiny else 5, DEVICE):
            rows.append({**more, "batch": size, **row})
    return rows


def bench(tiny: bool) -> list[Found]:
    """The full network, the routed one and the routed one that nobody leaves, eager."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        network = make_network(tiny, dtype=dtype)
        routed = routed_network("half leave", network, half_leave(network))
        rows += timed(network, [full_network(network), routed, nobody_leaves(network)], tiny, dtype=str(dtype))
    return rows


def compiled(tiny: bool) -> list[Found]:
    """The full and the routed network as machine code, and what compiling them takes."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    network, start = make_network(tiny, dtype=dtype), time.perf_counter()
    contenders = [full_network(network, True), routed_network("half leave", network, half_leave(network), True)]
    seconds = time.perf_counter() - start
    return timed(network, contenders, tiny, dtype=str(dtype), seconds_to_compile=seconds)


def graph_steps(network: EarlyExitNetwork, policy: Policy, example: Tensor) -> tuple[list[Step], Tensor]:
    """Each step as a CUDA graph for batches of the example's shape, and the tensor that the first one reads.

    A step's results stay where it was captured, and the next step was captured reading them there.
    """
    steps, first = list[Step](), example.clone()
    given: Any = first
    for step in make_steps(network, policy):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step(given)

        def replay(_: Any, graph: Any = graph, result: Result = result) -> Result:
            graph.replay()
            return result

        steps.append(replay)
        given = result[0]
    return steps, first


@torch.no_grad()
def graphs(tiny: bool) -> list[Found]:
    """A batch of one with a CUDA graph for each step, beside the full network in one graph and both without."""
    if DEVICE.type != "cuda":
        raise ModuleNotFoundError("no GPU", name="a GPU")
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        network = make_network(tiny, dtype=dtype)
        policy, batches = half_leave(network), list(images(network, 64).split(1))
        steps, first = graph_steps(network, policy, batches[0])
        whole = torch.cuda.CUDAGraph()
        with torch.cuda.graph(whole):
            logits = network.backbone(first)

        def routed(
            inputs: Tensor, network: Any = network, policy: Any = policy, first: Any = first, steps: Any = steps
        ) -> Routed:
            first.copy_(inputs)
            return route(network, first, policy, steps=steps)

        def full(inputs: Tensor, first: Tensor = first, whole: Any = whole, logits: Tensor = logits) -> Tensor:
            first.copy_(inputs)
            whole.replay()
            return logits

        pairs = [(network.route(inputs, policy), routed(inputs)) for inputs in batches]
        near = TOLERANCES[dtype] * pairs[0][0].logits.float().std().clamp_min(1e-3)
        moved = sum(one.exits.item() != other.exits.item() for one, other in pairs)
        runs = {
            "full, eager": network.backbone,
            "full, one graph": full,
            "routed, eager": partial(network.route, policy=policy),
            "routed, a graph per step": routed,
        }
        same = (network.backbone(batches[-1]) - full(batches[-1])).abs().max() <= near
        times = time_rounds(runs, batches, 5, DEVICE)
        for name, found in times.items():
            row = {
                "dtype": str(dtype),
                "name": name,
                "p50_ms": 1e3 * float(statistics.median(found.wall.flatten().tolist())),
            }
            rows.append({**row, "left_elsewhere": moved, "correct": bool(same) and moved <= 2})
    return rows


@torch.no_grad()
def decoding(tiny: bool) -> list[Found]:
    """Tokens per second of a random decoder, whole and with exits."""
    from eenet.backbones.gpt import Gpt
    from eenet.decoding import DecoderNetwork, Executor, RoutedExecutor, full_plan, generate, pad_left
    from eenet.inference_modules import TiedHead

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "vocab_size": 50} if tiny else {
        "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 8000
    }  # fmt: skip
    more = {"num_key_value_heads": 2, "intermediate_size": 2 * size["hidden_size"], "max_position_embeddings": 256}
    gpt = Gpt(task="tokens", family="llama", overrides={**size, **more, "initializer_range": 0.1})
    exits = [0, 2] if tiny else [2, 5, 8]
    network = DecoderNetwork(gpt, exits, partial(TiedHead, rank=8), ConfidenceGate).to(DEVICE).eval()
    new, rows = 4 if tiny else 48, []
    for batch in (1, 2) if tiny else (1, 8):
        texts = [torch.randint(5, size["vocab_size"], (24 - row,)).tolist() for row in range(batch)]
        prompts = pad_left(texts)
        scores = network({name: value.to(DEVICE) for name, value in prompts.items()}).scores
        stay = RoutedExecutor(network, Threshold([2.0] * len(exits)))
        plain = Executor(gpt, full_plan(gpt.num_stages), network.decoder_costs)
        runs = {"full": plain, "routed": RoutedExecutor(network, Threshold(scores.median(0).values.tolist()))}
        right = generate(stay, prompts, new).tokens == generate(plain, prompts, new).tokens
        for name, executor in runs.items():
            generate(executor, prompts, new)
            synchronise(DEVICE)
            start = time.perf_counter()
            found = generate(executor, prompts, new)
            synchronise(DEVICE)
            seconds = time.perf_counter() - start
            layers = statistics.mean(count for usage in found.usage for count in usage.layers[1:])
            row = {"batch": batch, "name": name, "tokens_per_second": sum(map(len, found.tokens)) / seconds}
            rows.append({**row, "layers": layers, "correct": right})
    return rows


SECTIONS: dict[str, Callable[[bool], list[Found]]] = {
    function.__name__: function for function in (correctness, features, jei_dnn, bench, graphs, decoding, compiled)
}


HIDDEN = {"kind", "ratio", "cpu_speedup", "cpu_ratio", "p95_ms", "bitops_speedup"}
"""Columns that are in the files alone."""


def run(name: str, out: Path, tiny: bool) -> Found:
    """Run a section and write what it found; whatever goes wrong is part of that."""
    start, found = time.perf_counter(), {"section": name, "device": device_name(DEVICE), "torch": torch.__version__}
    try:
        rows = SECTIONS[name](tiny)
        wrong = [row for row in rows if not row.get("correct", True)]
        found |= {"status": "wrong" if wrong else "ok", "rows": rows}
    except ModuleNotFoundError as error:
        found |= {"status": "skipped", "missing": error.name}
    except Exception as error:
        found |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    found["seconds"] = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1))
    return found


def table(out: Path) -> list[str]:
    """What all sections found, a line each, and the rows of those that time something or are wrong."""
    lines = list[str]()
    for name in SECTIONS:
        path = out / f"{name}.json"
        found = (
            json.loads(path.read_text()) if path.is_file() else {"status": "not run, or out of time", "seconds": 0.0}
        )
        reason = found.get("missing", found.get("error", ""))
        rows = found.get("rows", [])
        lines.append(f"{name}: {found['status']} {reason} ({len(rows)} rows, {found['seconds']:.0f} s)")
        for row in rows:
            if name == "correctness" and row["correct"]:
                continue
            shown = {key: value for key, value in row.items() if key not in HIDDEN}
            told = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
            )
            lines.append("    " + ", ".join(told))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a section or print the table; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=[*SECTIONS, "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--tiny", action="store_true", help="small networks and few rounds, for a CPU")
    given = parser.parse_args(arguments)
    if given.section != "table":
        found = run(given.section, given.out, given.tiny)
        print(f"{given.section}: {found['status']} ({found['seconds']:.0f} s)", flush=True)
        return int(found["status"] in ("wrong", "failed"))
    print("\n".join(table(given.out)))
    found = [given.out / f"{name}.json" for name in SECTIONS]
    states = {path.stem: json.loads(path.read_text())["status"] for path in found if path.is_file()}
    return int(states.get("correctness") != "ok" or "wrong" in states.values())


if __name__ == "__main__":
    sys.exit(main())
