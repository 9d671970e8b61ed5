"""`eenet infer RUN`: label, probability, exit and MACs of new images or texts, into Parquet, CSV or JSONL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from eenet.backbones.base import to_device
from eenet.cli.inputs import Item, Unreadable, batches, items, reader_of
from eenet.cli.outputs import COLUMNS, QUANTIZED_COLUMNS, Parts, Row
from eenet.cli.parsing import Parser
from eenet.cli.runs import Chosen, Run, add_checkpoint, chosen_point, class_names, open_run
from eenet.errors import UserError
from eenet.files import sha256
from eenet.tree import path_name


def main(args: list[str]) -> None:
    """Run `eenet infer` with some arguments.

    Raises:
        UserError: Wrong arguments, no such run, or an input or output that cannot be used.
    """
    parser = Parser(prog="eenet infer", description="Route new inputs through a run, batch by batch.")
    parser.add_argument("run", type=str, help="run folder")
    add_checkpoint(parser)
    parser.add_argument("--input", type=str, required=True, help="folder of images or texts, or a .csv or .jsonl file")
    parser.add_argument("--output", type=str, required=True, help="new file ending in .parquet, .csv or .jsonl")
    parser.add_argument("--point", type=str | None, default=None, help="a point of `eenet calibrate`, else the run's")
    parser.add_argument("--batch-size", type=int, default=256, help="inputs that are read and routed together")
    options = parser.parse_args(args)
    if options.batch_size < 1:
        raise UserError("batch-size", options.batch_size, "must be at least 1")
    run = open_run(options.run, read_data=False, checkpoint=options.ckpt_path)
    infer(run, chosen_point(run, options.point), Path(options.input), Path(options.output), options.batch_size)


def infer(run: Run, chosen: Chosen, source: Path, output: Path, batch_size: int) -> int:
    """Route every input of a source; a run that was killed goes on with the batches that are not whole.

    Args:
        run: The run.
        chosen: Its operating point.
        source: Folder, CSV or JSONL file.
        output: The file to write.
        batch_size: Inputs that are routed together.

    Returns:
        The number of inputs that could not be read; 0 where a job that was killed at its very end had said so.

    Raises:
        UserError: Nothing to read, or an output that cannot be used.
    """
    reader = reader_of(run.data)
    first = next(items(source, reader), None)
    if first is None:
        wanted = ", ".join(reader.suffixes)
        raise UserError("input", str(source), f"holds nothing to read; a folder needs files that end in {wanted}")
    route = Router(run, chosen)
    parts = Parts(output, job(run, chosen, source, batch_size), route.columns)
    if parts.joined:
        parts.drop()
        print(f"was written whole before: {output}")
        return 0
    samples = 0
    for number, batch in enumerate(batches(items(source, reader), batch_size)):
        samples += len(batch)
        if not parts.has(number, [item.id for item in batch]):
            parts.write(number, route(batch, reader))
    unreadable = 0
    for row in parts.problems(number + 1):
        unreadable += 1
        print(f"unreadable: {row['id']}: {row['problem']}")
    parts.join(number + 1)
    print(f"{samples - unreadable} samples at {chosen.name}, {unreadable} unreadable: {output}")
    return unreadable


def job(run: Run, chosen: Chosen, source: Path, batch_size: int) -> dict[str, Any]:
    """What makes the rows of an output, as plain JSON values."""
    stat = source.stat()
    return {
        "checkpoint": sha256(run.checkpoint),
        "point": {"name": chosen.name, **chosen.point.to_dict()},
        "input": str(source.resolve()),
        "changed": [stat.st_size, stat.st_mtime_ns] if source.is_file() else None,
        "batch_size": batch_size,
    }


class Router:
    """Turns items into rows.

    Args:
        run: The run.
        chosen: Its operating point.
    """

    def __init__(self, run: Run, chosen: Chosen) -> None:
        self.network, self.policy = chosen.point.network(run.model.network), chosen.point.policy
        self.temperatures = None
        if chosen.temperatures is not None:
            self.temperatures = chosen.point.own(chosen.temperatures, run.model.network)
        self.names = class_names(run.data)
        self.columns = QUANTIZED_COLUMNS if "bitops" in self.network.costs.columns else COLUMNS

    def __call__(self, batch: list[Item], reader: Any) -> list[Row]:
        """A row per item, in their order."""
        rows: list[Row] = []
        inputs = []
        for item in batch:
            rows.append({"id": item.id})
            try:
                inputs.append(item.read())
            except Unreadable as error:
                rows[-1]["problem"] = str(error)
        if inputs:
            found = iter(self.route(reader.collate(inputs)))
            rows = [row if "problem" in row else {**row, **next(found)} for row in rows]
        return rows

    @torch.no_grad()
    def route(self, inputs: Any) -> list[Row]:
        """What is written of routed inputs; probabilities are tempered at a calibrated point."""
        routed = self.network.route(to_device(inputs, self.network), self.policy)
        logits, exits = routed.logits.double().cpu(), routed.exits.cpu()
        if self.temperatures is not None:
            logits = logits / self.temperatures[routed.nodes.cpu()].unsqueeze(1)
        probabilities = logits.softmax(-1)
        best, labels = probabilities.max(-1)
        columns = labels, best, exits, routed.macs, probabilities
        rows = [
            {
                "label": str(label) if self.names is None else self.names[label],
                "probability": probability,
                "exit": exit,
                "macs": macs,
                "probabilities": every,
            }
            for label, probability, exit, macs, every in zip(*(column.tolist() for column in columns), strict=True)
        ]
        if routed.bitops is not None:
            paths = [path_name(self.network.tree.nodes[node]) for node in routed.nodes.tolist()]
            for row, path, bitops in zip(rows, paths, routed.bitops.tolist(), strict=True):
                row |= {"path": path, "bitops": bitops}
        return rows
