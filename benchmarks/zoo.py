"""Put exits on the models of timm, torchvision and transformers, one at a time, and count what attaches.

    python benchmarks/zoo.py --rows zoo.jsonl                   # goes on where it was stopped
    python benchmarks/zoo.py --rows zoo.jsonl --parts training onnx   # of those that attach
    python benchmarks/zoo.py --rows zoo.jsonl --table           # prints the tables of the docs
    python benchmarks/zoo.py --model timm:resnet18

One small model of each module of timm and torchvision stands for the module's entrypoints, whose number is its weight;
models of transformers are saved as a folder and read from there. Weights are random. Each row says whether the stages
equal the model bit for bit, how far the cuts are from a quarter, half and three quarters of the MACs; with `training`
whether logits are the model's with the same seed and gradients reach the same parameters; with `onnx` whether ONNX
takes the exits. Every model runs on one thread, in a process that is bounded in processor time and memory.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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


PICKED = {
    "byobnet": "mobileone_s0", "cspnet": "cs3darknet_focus_s", "efficientnet": "efficientnet_b0",
    "fasternet": "fasternet_t0", "iformer": "iformer_s", "nfnet": "nf_regnet_b0", "regnet": "regnetx_002",
    "resnet": "resnet18",
    "sequencer": "sequencer2d_s", "tresnet": "tresnet_m", "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "torchvision.models.swin_transformer": "swin_t", "torchvision.models.vision_transformer": "vit_b_16",
    "torchvision.models.regnet": "regnet_x_400mf", "torchvision.models.mnasnet": "mnasnet0_5",
}  # fmt: skip
"""Stand for their module where no name says which is smallest."""

SHRUNK = {
    "timm:deepseek_vit_412m": {"img_size": 224, "depth": 4}, "timm:gemma4_vit_167m": {"img_size": 224, "depth": 4},
    "timm:qwen3_vit_88m": {"img_size": 224}, "timm:samvit_base_patch16": {"img_size": 192},
    "torchvision:vit_b_16": {"image_size": 112}, "timm:vit_pe_core_tiny_patch16_384": {"img_size": 224},
}  # fmt: skip
"""Arguments of models that are large at any name."""

PIXELS = {
    "timm:naflexvit_base_patch16_gap": 128, "timm:csatv2": 256, "timm:nasnetalarge": 160, "timm:pnasnet5large": 160,
    "timm:inception_resnet_v2": 160, "timm:inception_v4": 160, "timm:inception_v3": 160, "timm:legacy_xception": 160,
    "timm:tresnet_m": 128, "timm:convmixer_1024_20_ks9_p14": 112, "torchvision:inception_v3": 160,
    "torchvision:convnext_tiny": 128, "torchvision:densenet121": 128, "torchvision:googlenet": 128,
    "timm:sam2_hiera_tiny": 256, "timm:rdnet_tiny": 128, "timm:nextvit_small": 128, "timm:mobilenetv5_base": 128,
    "timm:sequencer2d_s": 112,
}  # fmt: skip
"""Sides of images of models that take any."""


def models() -> dict[str, int]:
    """What is tried, what stands for most first, and how many entrypoints each stands for."""
    import timm
    import torchvision

    families = {("timm", module): timm.list_models(module=module) for module in timm.list_modules()}
    for name in torchvision.models.list_models(torchvision.models):
        module = torchvision.models.get_model_builder(name).__module__
        families.setdefault(("torchvision", module), []).append(name)
    found = {f"transformers:{name}": 1 for name in (*TEXTS, *IMAGES)}
    for (source, module), names in families.items():
        if names:
            real = [name for name in names if not name.startswith("test_")] or names
            found[f"{source}:{PICKED.get(module) or min(real, key=_size)}"] = len(names)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _size(name: str) -> float:
    """How large a model is, by its name."""
    words = ("femto", "atto", "pico", "nano", "micro", "xxs", "xs", "tiny", "mini", "small", "b0", "lite", "s")
    ranks = [rank for rank, word in enumerate(words) if word in name.split("_") or word in name]
    digits = [int(part) for part in "".join(c if c.isdigit() else " " for c in name.split("patch")[0]).split()]
    return min(ranks, default=len(words)) + sum(digits) / 1000


def arguments(name: str) -> dict[str, Any]:
    """Arguments of a model, so that those of transformers are small."""
    source, _, kind = name.partition(":")
    if source != "transformers":
        return SHRUNK.get(name, {})
    if kind in IMAGES and kind not in PLAIN:
        return {"num_labels": 5}
    if kind in PLAIN:
        return {
            **{key: value for key, value in SMALL.items() if key not in ("vocab_size", "pad_token_id")},
            "image_size": 32,
            "patch_size": 8,
        }
    if kind not in NAMES:
        return {**SMALL, **({"embedding_size": 16} if kind == "albert" else {})}
    own = {name: SMALL[usual] for name, usual in NAMES[kind].items()}
    return {**{key: SMALL[key] for key in ("vocab_size", "pad_token_id", "num_labels")}, **own}


def measure(name: str, weight: int, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row of one model for each part: whether it attaches, trains as it did, or becomes ONNX."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    begin = time.process_time()
    backbone, problem = tried(make, name)
    for part in parts:
        found, own = (None, problem) if problem else tried(PARTS[part], backbone)
        row = {"model": name, "weight": weight, "part": part, **(found or {}), **own}
        yield {**row, "seconds": round(time.process_time() - begin, 1)}
        begin = time.process_time()


def tried(function: Callable[[Any], Any], argument: Any) -> tuple[Any, dict[str, str]]:
    """What a function returns, or why it does not."""
    from eenet.errors import UserError

    try:
        return function(argument), {}
    except UserError as error:
        return None, {"refused": str(error)}
    except Exception as error:  # a crash is a row, too
        return None, {"crashed": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}


def make(name: str) -> Any:
    """A model with three exits by cost."""
    from eenet.backbones.traced import Traced

    wish = {"exits_at": {"fractions": list(FRACTIONS)}, "example_tokens": 16}
    shape = [3, PIXELS[name], PIXELS[name]] if name in PIXELS else None
    with source(name) as (model, options):
        return Traced(model, input_shape=shape, arguments=options, **wish).eval()


def attached(backbone: Any) -> dict[str, Any]:
    """Whether the stages are the model, and where they end."""
    import torch

    from eenet.backbones.traced.backbone import original
    from eenet.exits import stage_fractions

    inputs, reached = backbone.samples(), stage_fractions(backbone)
    with torch.no_grad():
        exact = torch.equal(original(backbone, inputs), backbone(inputs))
    return {
        "exact": exact,
        "exits": backbone.num_stages,
        "far": round(max(abs(found - wish) for found, wish in zip(reached, FRACTIONS, strict=False)), 4),
        "live": max(len(point.shapes) for point in backbone.plan.points[:-1]),
        "names": backbone.stage_names,
        "operators": operators(backbone),
    }


def operators(backbone: Any) -> list[str]:
    """The operators of the captured graph."""
    written = "".join(stage.source for stages in backbone._programs.values() for stage in stages)
    return sorted(set(re.findall(r"torch\.ops\.(aten\.\w+\.\w+)", written)))


def trained(backbone: Any) -> dict[str, Any]:
    """Whether logits in training are the model's with the same seed, and depend on the same parameters."""
    import torch

    from eenet.backbones.base import select
    from eenet.backbones.traced.backbone import original

    staged, plain = deepcopy(backbone).train(), deepcopy(backbone).train()
    inputs = select(backbone.samples(), torch.tensor([0, 1]))
    torch.manual_seed(1)
    expected = original(plain, inputs)
    torch.manual_seed(1)
    found = staged(inputs)
    one, other = (reached(logits, module) for logits, module in ((expected, plain), (found, staged)))
    return {"exact": torch.equal(expected, found), "gradients": one == other}


def reached(logits: Any, module: Any) -> set[str]:
    """The parameters on which logits depend, of the graph that backward walks."""
    waiting, seen = [logits.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    leaves = {id(node.variable) for node in seen if hasattr(node, "variable")}
    return {name for name, parameter in module.named_parameters() if id(parameter) in leaves}


def exported(backbone: Any) -> dict[str, Any]:
    """Why a step of a network with exits has no form in ONNX or as a program of torch, empty where every one has."""
    from eenet.cli.stages import example_of, exportable
    from eenet.gates import ConfidenceGate
    from eenet.network import EarlyExitNetwork

    problems = exportable(EarlyExitNetwork(backbone, gate=ConfidenceGate).eval(), example_of(backbone))
    return {"problem": problems["onnx"], "torch": problems["torch"]}


PARTS: dict[str, Callable[[Any], dict[str, Any]]] = {"attach": attached, "training": trained, "onnx": exported}


@contextmanager
def source(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What names a model, and its arguments; one of transformers is saved as a folder first."""
    library, _, kind = name.partition(":")
    if library != "transformers":
        yield name, arguments(name)
        return
    from eenet.backbones.traced.models import Wish, make_model

    with tempfile.TemporaryDirectory() as folder:
        made = make_model(name, Wish(kind, None, None, False, arguments(name), 16))
        made.model.save_pretrained(folder)  # type: ignore[operator]
        yield f"transformers:{folder}", {}


def sweep(rows: Path, names: dict[str, int], limits: tuple[int, int], parts: Sequence[str]) -> None:
    """Measure what has no row yet, each model in a process of its own, so that one's end is not the sweep's."""
    import timm  # noqa: F401  # here, once, rather than in every process
    import torch.onnx
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    import eenet.cli.inspect  # noqa: F401

    os.nice(10)
    torch.set_num_threads(1)
    for name, weight in names.items():
        left = missing(rows, name, parts)
        if not left:
            continue
        process = multiprocessing.get_context("fork").Process(target=bounded, args=(rows, name, weight, limits, left))
        process.start()
        process.join()
        for part in missing(rows, name, left):
            write(rows, {"model": name, "weight": weight, "part": part, "crashed": f"status {process.exitcode}"})


def missing(rows: Path, name: str, parts: Sequence[str]) -> list[str]:
    """The parts of which a model has no row."""
    done = {row["part"] for row in read(rows) if row["model"] == name}
    return [part for part in parts if part not in done]


def bounded(rows: Path, name: str, weight: int, limits: tuple[int, int], parts: Sequence[str]) -> None:
    """Write the rows of one model within bounds."""
    seconds, gigabytes = limits
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
    for row in measure(name, weight, parts):
        write(rows, row)


def write(rows: Path, row: dict[str, Any]) -> None:
    """Add a row, and print it."""
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def read(rows: Path) -> list[dict[str, Any]]:
    """The rows that were written."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The tables of the docs: a summary by library, what is refused, and a line for each model."""
    models = merged(rows)
    counted = ["models", "attach", "of entrypoints", "bit for bit", "within 8 %", "train alike", "ONNX", "torch"]
    libraries = ("timm", "torchvision", "transformers")
    yield from lines(["library", *counted], (summary(library, models) for library in libraries))
    yield ""
    rest = [(name, parts) for name, parts in models.items() if "exact" not in parts["attach"]]
    if rest:
        reasons = ([f"`{name}`", said(parts["attach"])] for name, parts in rest)
        yield from lines(["does not attach", "reason"], reasons)
        yield ""
    heads = ["model", "stands for", "exits after", "farthest off, %", "tensors", "trains alike", "ONNX", "torch"]
    yield from lines(heads, (line(name, parts) for name, parts in models.items() if "exact" in parts["attach"]))


def merged(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of each model by their part, where it was tried at all."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        models.setdefault(row["model"], {})[row["part"]] = row
    return {name: parts for name, parts in sorted(models.items()) if "attach" in parts}


def summary(library: str, models: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Counts of one library."""
    own = [parts for name, parts in models.items() if name.startswith(f"{library}:")]
    fit = [parts for parts in own if parts["attach"].get("exits", 0) > len(FRACTIONS)]
    weights, fitting = (sum(parts["attach"]["weight"] for parts in some) for some in (own, fit))
    exact, near = (
        sum(test(parts["attach"]) for parts in fit)
        for test in (lambda row: row["exact"], lambda row: row["far"] <= NEAR)
    )
    measured = (
        [alike(parts["training"]) for parts in fit if "training" in parts],
        [not said(parts["onnx"]) for parts in fit if "onnx" in parts],
        [not parts["onnx"]["torch"] for parts in fit if "torch" in parts.get("onnx", {})],
    )
    share = f"{fitting} of {weights} ({100 * fitting / max(weights, 1):.1f} %)"
    counts = [*map(str, (len(own), len(fit))), share, str(exact), str(near)]
    return [library, *counts, *(f"{sum(some)} of {len(some)}" for some in measured)]


def line(name: str, parts: dict[str, dict[str, Any]]) -> list[str]:
    """What was measured of one model; empty where it was not."""
    row = parts["attach"]
    trains = "training" in parts and ("yes" if alike(parts["training"]) else said(parts["training"]) or "no")
    onnx = "onnx" in parts and (said(parts["onnx"]) or "yes")
    torch = "torch" in parts.get("onnx", {}) and (parts["onnx"]["torch"] or "yes")
    after = ", ".join(f"`{stage}`" for stage in row["names"][:-1])
    return [
        f"`{name}`",
        str(row["weight"]),
        after,
        f"{100 * row['far']:.1f}",
        str(row["live"]),
        trains or "",
        onnx or "",
        torch or "",
    ]


def alike(row: dict[str, Any]) -> bool:
    """Whether logits in training are the model's, and gradients reach the same parameters."""
    return row.get("exact") is True and row.get("gradients") is True


def said(row: dict[str, Any]) -> str:
    """Why something did not work."""
    return next((row[key] for key in ("refused", "crashed", "problem") if row.get(key)), "")


def lines(heads: list[str], cells: Iterable[list[str]]) -> Iterator[str]:
    """A table of Markdown."""
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for row in cells:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def main() -> None:
    """Measure one model, all that have no row, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("zoo.jsonl"), help="file of one JSON row per model")
    parser.add_argument("--model", help="measure this one and print its row")
    parser.add_argument("--seconds", type=int, default=120, help="processor time for one model")
    parser.add_argument("--gigabytes", type=int, default=14, help="memory for one model")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["attach"], help="what is measured")
    parser.add_argument("--table", action="store_true", help="print the tables of the rows")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(read(options.rows))))
    elif options.model:
        for row in measure(options.model, models().get(options.model, 1), options.parts):
            print(json.dumps(row))
    else:
        names = models()
        if "attach" not in options.parts:
            fit = {row["model"] for row in read(options.rows) if row["part"] == "attach" and row.get("exact")}
            names = {name: weight for name, weight in names.items() if name in fit}
        sweep(options.rows, names, (options.seconds, options.gigabytes), options.parts)


if __name__ == "__main__":
    main()
