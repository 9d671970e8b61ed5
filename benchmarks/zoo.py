"""Put exits on the models of timm, torchvision and transformers, one process each, and count what attaches.

    python benchmarks/zoo.py --rows zoo.jsonl                 # goes on where it was stopped
    python benchmarks/zoo.py --rows zoo.jsonl --table         # prints the table of the docs
    python benchmarks/zoo.py --rows zoo.jsonl --model timm:resnet18

The smallest model (by name of size) of each module of timm stands for the module's entrypoints, whose number is its
weight. Weights are random. Each row says whether the stages equal the model bit for bit, in evaluation and in training
with the same seed, whether gradients reach every parameter that the model's own do, whether rows can be dropped, how
far the cuts are from a quarter, half and three quarters of the MACs, and with `--onnx` whether ONNX takes the exits.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

FRACTIONS = (0.25, 0.5, 0.75)
NEAR = 0.08
PLAIN = ("vit", "deit", "beit", "dinov2")
IMAGES = (*PLAIN, "swin", "convnext", "resnet", "mobilevit", "convnextv2", "swinv2", "regnet", "pvt_v2")
TEXTS = (
    "bert", "roberta", "distilbert", "xlm-roberta", "camembert", "electra", "albert", "mpnet", "deberta", "deberta-v2",
    "modernbert", "xlnet", "gpt2", "llama",
)  # fmt: skip
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100,
    "pad_token_id": 1, "num_labels": 5,
}  # fmt: skip
NAMES = {
    "distilbert": {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"},
    "xlnet": {"d_model": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"},
    "gpt2": {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"},
}


def models() -> dict[str, int]:
    """What is tried, the smallest first, and how many entrypoints each stands for."""
    import timm
    import torchvision

    found: dict[str, tuple[float, int]] = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            smallest = min(names, key=_size)
            found[f"timm:{smallest}"] = (_size(smallest), len(names))
    families: dict[str, list[str]] = {}
    for name in torchvision.models.list_models(torchvision.models):
        families.setdefault(torchvision.models.get_model_builder(name).__module__, []).append(name)
    for names in families.values():
        smallest = min(names, key=_size)
        found[f"torchvision:{smallest}"] = (_size(smallest), len(names))
    found |= {f"transformers:{name}": (-1.0, 1) for name in (*TEXTS, *IMAGES)}
    return {name: weight for name, (_, weight) in sorted(found.items(), key=lambda item: item[1][0])}


def _size(name: str) -> float:
    """How large a model is, by its name."""
    words = ("femto", "atto", "pico", "nano", "test", "micro", "xxs", "xs", "tiny", "mini", "small", "b0", "lite", "s")
    ranks = [rank for rank, word in enumerate(words) if word in name.split("_") or word in name]
    digits = [int(part) for part in "".join(c if c.isdigit() else " " for c in name.split("patch")[0]).split()]
    return min(ranks, default=len(words)) + sum(digits) / 1000


def arguments(name: str) -> dict[str, Any]:
    """Arguments of a model, so that those of transformers are small."""
    source, _, kind = name.partition(":")
    if source != "transformers":
        return {}
    if kind in IMAGES and kind not in PLAIN:
        return {"num_labels": 5}
    if kind in PLAIN:
        return {**{key: value for key, value in SMALL.items() if "_id" not in key}, "image_size": 32, "patch_size": 8}
    if kind not in NAMES:
        return {**SMALL, **({"embedding_size": 16} if kind == "albert" else {})}
    own = {name: SMALL[usual] for name, usual in NAMES[kind].items()}
    return {**{key: SMALL[key] for key in ("vocab_size", "pad_token_id", "num_labels")}, **own}


def measure(name: str, weight: int, onnx: bool) -> dict[str, Any]:
    """The row of one model; exporting it to ONNX takes longer than all else."""
    import torch
    from torch.utils import _pytree as pytree

    from eenet.backbones.base import select
    from eenet.backbones.proofs import close
    from eenet.backbones.traced import Traced
    from eenet.backbones.traced.backbone import original
    from eenet.errors import UserError
    from eenet.exits import stage_fractions

    torch.manual_seed(0)
    torch.set_num_threads(1)
    row: dict[str, Any] = {"model": name, "weight": weight}
    begin = time.perf_counter()
    try:
        backbone = Traced(name, arguments=arguments(name), exits_at={"fractions": list(FRACTIONS)}, example_tokens=16)
    except UserError as error:
        return {**row, "refused": str(error), "seconds": time.perf_counter() - begin}
    row["seconds"] = time.perf_counter() - begin
    inputs = backbone.samples()
    backbone.eval()
    with torch.no_grad():
        expected, state = original(backbone, inputs), backbone.embed(inputs)
        row["exact"] = torch.equal(expected, backbone(inputs))
        keep = torch.tensor([3, 1])
        for stage in range(backbone.num_stages):
            state = backbone.run_stage(stage, select(state, keep) if stage == 1 else state)
        row["rows"] = close(backbone.classify(state), expected[keep])
    reached = stage_fractions(backbone)
    row["far"] = max(abs(found - wish) for found, wish in zip(reached, FRACTIONS, strict=False))
    row["live"] = max(len(point.shapes) for point in backbone.plan.points[:-1])
    row["places"] = backbone.plan.places
    try:
        staged, plain = deepcopy(backbone).train(), deepcopy(backbone).train()
        torch.manual_seed(1)
        one = original(plain, inputs)
        torch.manual_seed(1)
        other = staged(inputs)
        row["training"] = torch.equal(one, other)
        one.sum().backward()
        other.sum().backward()
        pairs = zip(plain.parameters(), staged.parameters(), strict=True)
        row["gradients"] = all((p.grad is None) == (q.grad is None) for p, q in pairs)
    except UserError as error:
        row["training"] = str(error)
    except (RuntimeError, ValueError) as error:
        row["training"] = f"{type(error).__name__}: {error}".partition("\n")[0]
    if onnx:
        example = pytree.tree_map(lambda rows: rows[:1].expand(3, *rows.shape[1:]).contiguous(), inputs)
        row["onnx"] = exported(backbone, example)
    return row


def exported(backbone: Any, example: Any) -> str:
    """Empty where every step of a network with exits becomes ONNX, else why not."""
    from eenet.cli.stages import exportable
    from eenet.gates import ConfidenceGate
    from eenet.network import EarlyExitNetwork

    return exportable(EarlyExitNetwork(backbone, gate=ConfidenceGate).eval(), example, "onnx")


def sweep(rows: Path, limit: float, onnx: bool) -> None:
    """Measure what has no row yet."""
    done = {row["model"] for row in read(rows)}
    for name, weight in models().items():
        if name in done:
            continue
        command = [sys.executable, __file__, "--model", name, "--weight", str(weight), *(["--onnx"] if onnx else [])]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, check=False, preexec_fn=_nice
            )
            lines = ended.stdout.strip().splitlines()
            failed = {"model": name, "weight": weight, "crashed": ended.stderr.strip().splitlines()[-1:]}
            row = json.loads(lines[-1]) if ended.returncode == 0 and lines else failed
        except subprocess.TimeoutExpired:
            row = {"model": name, "weight": weight, "timeout": limit}
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def _nice() -> None:
    os.nice(10)


def read(rows: Path) -> list[dict[str, Any]]:
    """The rows that were written."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table of the docs."""
    heads = (
        "source",
        "tried",
        "attach",
        "by entrypoints",
        "bit for bit",
        "rows dropped",
        "training",
        "within 8 %",
        "ONNX",
    )
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for source, count in Counter(row["model"].partition(":")[0] for row in rows).items():
        own = [row for row in rows if row["model"].startswith(f"{source}:")]
        fit = [row for row in own if "exact" in row]
        weights, fitting = (sum(row["weight"] for row in part) for part in (own, fit))
        near = sum(row["far"] <= NEAR for row in fit)
        exact, kept, trained = (sum(row[key] is True for row in fit) for key in ("exact", "rows", "training"))
        tried = [row["onnx"] == "" for row in fit if "onnx" in row]
        onnx = f"{sum(tried)} of {len(tried)}"
        cells = (count, len(fit), f"{fitting}/{weights}", exact, kept, trained, near, onnx)
        yield f"| {source} | " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure one model, all that have no row, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("zoo.jsonl"), help="file of one JSON row per model")
    parser.add_argument("--model", help="measure this one and print its row")
    parser.add_argument("--weight", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600, help="seconds for one model")
    parser.add_argument("--onnx", action="store_true", help="export each as ONNX, too")
    parser.add_argument("--table", action="store_true", help="print the table of the rows")
    options = parser.parse_args()
    if options.model:
        print(json.dumps(measure(options.model, options.weight, options.onnx)))
    elif options.table:
        print("\n".join(table(read(options.rows))))
    else:
        sweep(options.rows, options.limit, options.onnx)


if __name__ == "__main__":
    main()
