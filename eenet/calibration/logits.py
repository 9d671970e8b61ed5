"""All exits' logits on a split, kept in a file and read back in blocks: a large split does not fit in memory."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from eenet.calibration.conformal import true_class_scores
from eenet.errors import UserError
from eenet.files import name_file, size

BLOCK_BYTES = 2**20
"""Bytes of the blocks in which logits are read; they and what is computed of them stay in a processor's cache."""


class LogitFile:
    """Float32 logits of all exits in a nameless temporary file, which goes with the object or the process.

    It lies in `$TMPDIR`, or in a given folder where that is not set. Blocks are read, not mapped: pages of a map count
    as the process's own.

    Args:
        samples: That will be added.
        folder: Of the file where there is no `$TMPDIR`.

    Raises:
        UserError: `$TMPDIR` is no folder.

    Example:
        >>> logits = LogitFile(3, Path("."))
        >>> logits.append(torch.ones(2, 4, 5)), logits.append(torch.zeros(1, 4, 5))
        (None, None)
        >>> logits.shape, [len(block) for block in logits.split(2)]
        (torch.Size([3, 4, 5]), [2, 1])
    """

    def __init__(self, samples: int, folder: Path) -> None:
        self.samples, self.folder = samples, Path(os.environ.get("TMPDIR") or folder)
        self.shape = torch.Size([0, 0, 0])
        if not self.folder.is_dir():
            raise UserError("TMPDIR", str(self.folder), "is no folder; set it to one, or not at all")
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115

    def __len__(self) -> int:
        return self.shape[0]

    def append(self, rows: Tensor) -> None:
        """Add samples, `(batch, exits, classes)`, in any floating type.

        Raises:
            UserError: All samples do not fit on the disk.
        """
        values = rows.detach().float().cpu().contiguous().numpy()
        if not len(self):
            self._check_space(values[0].nbytes * self.samples)
        try:
            self._file.write(values.data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                name_file(error, self.folder)
                raise
            raise self._full(self.samples * values[0].nbytes) from error
        self.shape = torch.Size([len(self) + len(rows), *rows.shape[1:]])

    def split(self, rows: int) -> Iterator[Tensor]:
        """The samples in order, as `Tensor.split` gives them: blocks of some samples, a new tensor each."""
        for start in range(0, len(self), rows):
            block = torch.empty(min(rows, len(self) - start), *self.shape[1:])
            self._file.seek(start * block[0].nbytes)
            self._file.readinto(block.numpy().data.cast("B"))
            yield block

    def _check_space(self, needed: int) -> None:
        if needed > shutil.disk_usage(self.folder).free:
            raise self._full(needed)

    def _full(self, needed: int) -> UserError:
        free = shutil.disk_usage(self.folder).free
        return UserError(
            "TMPDIR",
            str(self.folder),
            f"the exits' logits take {size(needed)} and {size(free)} are free; set TMPDIR to a folder with more room",
        )


Logits: TypeAlias = Tensor | LogitFile
"""Logits of all exits, `(samples, exits, classes)`, in memory or in a file."""


def blocks(logits: Logits) -> Iterator[tuple[slice, Tensor]]:
    """The samples in order, in blocks of about `BLOCK_BYTES` in float32: where they lie, and `(block, exits, classes)`.

    Example:
        >>> [(rows.start, len(block)) for rows, block in blocks(torch.zeros(300, 1, 1000))]
        [(0, 262), (262, 38)]
    """
    rows = max(1, BLOCK_BYTES // (4 * max(1, logits.shape[1] * logits.shape[2])))
    start = 0
    for block in logits.split(rows):
        yield slice(start, start + len(block)), block
        start += len(block)


def spread(samples: int, most: int, device: torch.device) -> Tensor:
    """A mask of at most so many samples, spread evenly, since a split may be in the order of its classes.

    Example:
        >>> spread(5, 3, torch.device("cpu")).tolist()
        [True, False, True, False, True]
    """
    chosen = torch.linspace(0, samples - 1, min(most, samples), dtype=torch.float64).round().long()
    return torch.zeros(samples, dtype=torch.bool, device=device).index_fill_(0, chosen.to(device), True)


def take(logits: Logits, keep: Tensor) -> Tensor:
    """Some samples, in memory.

    What outlives a block is put where room was made before: small pieces between the blocks would keep their memory
    from being used again.

    Args:
        logits: `(samples, exits, classes)`.
        keep: A mask, `(samples,)`.
    """
    places = keep.cumsum(0)
    some = torch.empty(int(places[-1]), *logits.shape[1:], device=keep.device)
    for rows, block in blocks(logits):
        some[places[rows][keep[rows]] - 1] = block[keep[rows]].float()
    return some


class KnownExits(NamedTuple):
    """What operating points and conformal sets are chosen by; in a chain nodes are exits.

    Attributes:
        predictions: Predicted classes, `(samples, nodes)`.
        scores: What the gate gives, `(samples, early nodes, ...)`.
        true_scores: Of the true classes, from `true_class_scores`, `(samples, nodes)`.
    """

    predictions: Tensor
    scores: Tensor
    true_scores: Tensor


class Scores(Protocol):
    """What scores early nodes: a `Gate`, or several at once."""

    num_gates: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores, `(batch, gates, ...)`, from the early nodes' logits, `(batch, gates, classes)`."""

    def answers(self, logits: Tensor) -> Tensor:
        """What samples are answered with there, `(batch, gates, classes)`."""


@torch.no_grad()
def read_exits(logits: Logits, labels: Tensor, gate: Scores) -> KnownExits:
    """What is known of every sample at every node, in one pass over its logits.

    Args:
        logits: `(samples, nodes, classes)`.
        labels: `(samples,)`.
        gate: Scores the early nodes, which come first.
    """
    samples, exits = logits.shape[:2]
    device = labels.device
    predictions = torch.empty(samples, exits, dtype=torch.long, device=device)
    scores, true_scores = torch.empty(0), torch.empty(samples, exits, device=device)
    for rows, block in blocks(logits):
        early = block[:, : gate.num_gates]
        given, answers = gate(early), torch.cat([gate.answers(early), block[:, gate.num_gates :]], dim=1)
        if not rows.start:
            scores = torch.empty(samples, *given.shape[1:], device=device)
        predictions[rows], scores[rows] = answers.argmax(-1), given
        true_scores[rows] = true_class_scores(answers.softmax(-1), labels[rows])
    return KnownExits(predictions, scores, true_scores)
