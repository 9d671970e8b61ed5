"""Pure functions on labels: which rows belong to which split, and the digest that proves it."""

import hashlib
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

from eenet.errors import UserError

Labels = np.ndarray
Rows = np.ndarray
Rare = Literal["error", "train"]
"""What becomes of a class of one sample, of which only one side of a cut can have any."""


def stratified_split(
    labels: Labels, rows: Rows, fraction: float, seed: int, field: str, rare: Rare = "error"
) -> tuple[Rows, Rows]:
    """Cut a part off some rows, with the same class proportions on both sides.

    Args:
        labels: Class of every sample, `(samples,)`.
        rows: The rows to divide, `(rows,)`.
        fraction: Share of `rows` that is cut off, between 0 and 1.
        seed: Decides the cut, the same on every machine.
        field: The configuration field to name if the cut cannot be made.
        rare: Refuse a class of one sample, or let it stay; the fraction is then cut off the others.

    Returns:
        The rows that stay and the rows cut off, both ascending.

    Raises:
        UserError: If a class has a single sample that may not stay, a side would have fewer samples than there are
            classes, or the seed is out of range.

    Example:
        >>> stay, part = stratified_split(np.array([0, 0, 1, 1]), np.arange(4), 0.5, seed=0, field="data")
        >>> len(stay), len(part), sorted([*stay, *part]) == [0, 1, 2, 3]
        (2, 2, True)
    """
    if not 0 <= seed < 2**32:
        raise UserError("data.seed", seed, f"must lie between 0 and {2**32 - 1}")
    alone = np.isin(labels[rows], single_classes(labels[rows]))
    if rare == "error" and alone.any():
        problem = f"{len(rows)} samples cannot be split by class: class {int(labels[rows][alone][0])} has 1"
        raise UserError(field, fraction, f"{problem}; `data.rare: train` keeps such samples in training")
    kept, others = rows[alone], rows[~alone]
    classes, counts = np.unique(labels[others], return_counts=True)
    cut = math.ceil(fraction * len(others))
    fewer = min(cut, len(others) - cut)
    if fewer < max(1, len(classes)):
        problem = f"{len(rows)} samples cannot be split by class: one side would have {fewer}"
        raise UserError(field, fraction, f"{problem}, fewer than the {len(classes)} classes")
    # Draw for draw as scikit-learn's `train_test_split`, whose import takes longer than all else at opening a run.
    generator = np.random.RandomState(seed)
    staying = _draw_counts(counts, len(others) - cut, generator)
    leaving = _draw_counts(counts - staying, cut, generator)
    stay, part = [kept], [kept[:0]]
    for name, first, second in zip(classes, staying, leaving, strict=True):
        own = generator.permutation(others[labels[others] == name])
        stay.append(own[:first])
        part.append(own[first : first + second])
    return np.sort(np.concatenate(stay)), np.sort(np.concatenate(part))


def _draw_counts(available: np.ndarray, size: int, generator: np.random.RandomState) -> np.ndarray:
    """How many of each class so many samples are to have, `(classes,)`: their shares, the nearest rounded up first."""
    shares = available / available.sum() * size
    counts = np.floor(shares)
    rest, missing = shares - counts, int(size - counts.sum())
    for value in np.unique(rest)[::-1]:
        if missing <= 0:
            break
        tied = np.flatnonzero(rest == value)
        drawn = generator.choice(tied, size=min(len(tied), missing), replace=False)
        counts[drawn] += 1
        missing -= len(drawn)
    return counts.astype(int)


def single_classes(labels: Labels) -> np.ndarray:
    """The classes that have one sample, ascending.

    Example:
        >>> single_classes(np.array([2, 0, 0, 3])).tolist()
        [2, 3]
    """
    return np.flatnonzero(np.bincount(labels) == 1)


def long_tailed(labels: Labels, ratio: float, seed: int) -> Rows:
    """Rows of an exponentially imbalanced subset: class `c` of `C` keeps `round(n_max * ratio ** (c / (C - 1)))`.

    Args:
        labels: Class of every sample of a balanced set, `(samples,)`; `n_max` is the size of its smallest class.
        ratio: Size of the last class over that of the first, in (0, 1].
        seed: Decides which samples a class keeps.

    Returns:
        Ascending rows.

    Example:
        >>> rows = long_tailed(np.repeat([0, 1, 2], 100), ratio=0.01, seed=0)
        >>> np.bincount(np.repeat([0, 1, 2], 100)[rows]).tolist()
        [100, 10, 1]
    """
    counts = np.bincount(labels)
    shares = ratio ** (np.arange(len(counts)) / max(1, len(counts) - 1))
    generator = np.random.RandomState(seed)
    kept = [
        generator.choice(np.flatnonzero(labels == c), round(counts.min() * share), replace=False)
        for c, share in enumerate(shares)
    ]
    return np.sort(np.concatenate(kept))


def check_labels(labels: Labels, num_classes: int, source: str) -> None:
    """Raise a `UserError` where labels `(samples,)` of a source are none, or not of `0 .. num_classes - 1`."""
    if len(labels) == 0:
        raise UserError("data", source, "holds no samples")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        row = int(wrong[0])
        problem = f"label {int(labels[row])} of sample {row} is not one of the {num_classes} classes, counted from 0"
        raise UserError("data", source, problem)


def check_classes(labels: Labels, num_classes: int, source: str) -> None:
    """Raise a `UserError` that names a class of which the training labels `(samples,)` of a source have no sample."""
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(empty):
        raise UserError("data", source, f"class {int(empty[0])} of {num_classes} has no training samples")


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of some byte strings, as hex; where one ends and the next begins counts.

    Example:
        >>> digest([b"ab", b"c"]) == digest([b"a", b"bc"])
        False
    """
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def integer_bytes(values: np.ndarray) -> bytes:
    """Integers as little-endian 64-bit bytes, the same on every machine."""
    return values.astype("<i8").tobytes()
