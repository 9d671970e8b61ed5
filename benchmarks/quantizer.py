"""What each width costs in accuracy: `python benchmarks/quantizer.py RUN --split val --widths 8,4,3`.

RUN is the run of a backbone (or of any routine). For each seed other training images calibrate the quantizer; a row
for each width says how many points it is below the float network. Settings are looked for on `val`; `test` is for the
end.
"""

from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch
from jsonargparse import auto_cli
from report import finish
from torch.utils.data import DataLoader, default_collate

from eenet.api.opening import open_run
from eenet.backbones import StagedBackbone
from eenet.quantization import QuantizedBackbone


@torch.inference_mode()
def accuracy(backbone: StagedBackbone, loader: DataLoader) -> float:
    """Share of the samples that are right, in percent."""
    right = [(backbone(inputs).argmax(-1) == labels).double() for inputs, labels in loader]
    return 100 * torch.cat(right).mean().item()


def main(
    run: str,
    split: Literal["val", "test"] = "val",
    widths: list[int] = [8, 6, 4, 3, 2],  # noqa: B006
    seeds: int = 3,
    samples: int = 1024,
    rest_width: int = 8,
    edge_width: int | None = None,
    output: Path | None = None,
) -> None:
    """Measure.

    Args:
        run: Folder of the backbone's run.
        split: Judged on.
        widths: Of the weights.
        seeds: Draws of the calibration samples, and as many others that choose the kind of ranges.
        samples: Of each draw.
        rest_width: As of `QuantizedBackbone`.
        edge_width: As of `QuantizedBackbone`.
        output: JSON file.
    """
    torch.set_num_threads(1)
    opened = open_run(run)
    backbone, train = opened.model.network.backbone.eval(), opened.data.dataset("train")
    loader = DataLoader(opened.data.dataset(split), batch_size=256)
    full = accuracy(backbone, loader)
    rows = []
    for width in widths:
        losses, found = [], None
        for seed in range(seeds):
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: 2 * samples].tolist()
            batches = [
                default_collate([train[row][0] for row in order[i : i + 256]]) for i in range(0, len(order), 256)
            ]
            found = QuantizedBackbone(backbone, width, rest_width=rest_width, edge_width=edge_width).eval()
            found.calibrate(batches[: len(batches) // 2], batches[len(batches) // 2 :])
            losses.append(full - accuracy(found, loader))
            print(f"{width} bits, seed {seed}: {losses[-1]:.2f} points below {full:.2f}", flush=True)
        assert found is not None
        spread = stdev(losses) if seeds > 1 else 0.0
        rows.append({"width": width, "below": fmean(losses), "spread": spread, "losses": losses})
        rows[-1]["ranges"] = found.quantization["range_methods"][str(width)]
    finish({"run": run, "split": split, "samples": samples, "float": full, "widths": rows}, output)


if __name__ == "__main__":
    auto_cli(main)
