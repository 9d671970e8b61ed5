"""Runs beside each other: read, checked to be tested on the same samples, and grouped over seeds.

A group is the runs of one identity, as `eenet.runs.identify` records it, that differ by their field `seed`. Its
operating points, the random routing at each point's exit fractions, and its static exits carry mean and deviation over
seeds.
"""

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from eenet.errors import UserError, command
from eenet.files import short_names
from eenet.profile import CostProfile, bitops
from eenet.reporting.names import spoken
from eenet.reporting.results import Results, check_weights, chosen_rows, read_results
from eenet.reporting.table import not_chosen_lines
from eenet.runs.folder import RunFolder

Row = dict[str, Any]
"""A row of `exits` or `operating_points` of a `results.json`; its fractions of the cost have one denominator."""

FIGURES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece", "brier", "aurc"),
    *("macs", "macs_fraction", "bitops_fraction", "gain"),
)
"""Figures of a row that are compared; one that a row lacks is left out. Random routing alone has `gain`."""

MIXTURES = ("accuracy", "nll", "brier")
"""Figures that are means over samples, so that random routing's expectation is the mixture of the static exits'."""

STATIC_MODELS = "backbone"
"""Method of the runs that are static models."""

FIELDS = (
    "method",
    "identity",
    "data",
    "split",
    "backbone",
    "exit_stages",
    "costs",
    "versions",
    "exits",
    "operating_points",
)
SEED_PART = re.compile(r"(^|[,_-])seed[=_-]?\d+$")
"""The end of a folder's name that says its seed."""

SEED = re.compile(r"seed[=_-]?\d+")
"""A seed in a value, such as the name of the backbone's run."""

KNOBS = ("model.tradeoff", "model.budgets")
"""Fields that move a method along its curve."""

CALIBRATED = re.compile(r"(?:(.+)-)?(?:budget-macs|budget-bitops|budget|max-accuracy-drop|risk)-[^-]+(?:e-\d+)?")
"""Names that `eenet calibrate` gives to points: the policy, unless it is the run's own, and what was asked for."""


class Spread(NamedTuple):
    """A figure over seeds.

    Attributes:
        mean: Mean.
        deviation: Sample standard deviation; `None` with one seed.
    """

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Run:
    """One results file.

    Attributes:
        folder: Where it lies.
        results: What it holds.
    """

    folder: Path
    results: Results

    @property
    def key(self) -> str:
        """What runs share that differ by their seed alone.

        Example:
            >>> about = {"method": "jei_dnn", "backbone": {}, "exit_stages": [1]}
            >>> one, two = ({**about, "identity": {"fields": {"data.seed": 0}}, "seed": seed} for seed in (0, 1))
            >>> Run(Path("a"), one).key == Run(Path("b"), two).key
            True
        """
        fields = {name: SEED.sub("seed", json.dumps(value)) for name, value in self.fields.items()}
        return json.dumps([*self.about, fields], sort_keys=True)

    @property
    def curve_key(self) -> str:
        """What runs share that lie on one curve, such as those of several lambdas."""
        fields = {name: value for name, value in json.loads(self.key)[-1].items() if name not in KNOBS}
        return json.dumps([*self.about, fields], sort_keys=True)

    @property
    def fields(self) -> dict[str, Any]:
        """What the run was given beside the defaults."""
        return self.results["identity"]["fields"]

    @property
    def about(self) -> list[Any]:
        """What else tells it from others; which checkpoint it is of counts as the last or another."""
        last = self.results.get("checkpoint", "last") == "last"
        return [*(self.results[key] for key in ("method", "backbone", "exit_stages")), last]

    @property
    def stem(self) -> Path:
        """The folder without the seed part of its name; the folder around it if its name is the seed alone.

        Example:
            >>> Run(Path("/runs/sweep/tradeoff=1,seed=2"), {}).stem.as_posix(), Run(Path("/runs/x/seed2"), {}).stem.name
            ('/runs/sweep/tradeoff=1', 'x')
        """
        folder = self.folder.resolve()
        return folder.parent / SEED_PART.sub("", folder.name)

    @property
    def full_macs(self) -> int:
        """MACs of the plain backbone."""
        return CostProfile.from_dict(self.results["costs"]).full


@dataclass(frozen=True)
class Point:
    """An operating point or static exit over seeds.

    Attributes:
        name: Of the operating point or exit.
        figures: Those of `FIGURES` that all seeds have.
        shares: Mean share of the samples that leaves at each exit.
    """

    name: str
    figures: dict[str, Spread]
    shares: list[float]


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed only, at the operating points of one policy.

    Attributes:
        label: The end of their folders' path, without the seed, that no other runs have.
        policy: Of the points, if it is not the method's own.
        runs: By seed.
        rows: Of each run, from `rows_of`.
    """

    label: str
    policy: str
    runs: list[Run]
    rows: list[dict[str, list[Row]]]

    @property
    def results(self) -> Results:
        """Of the first seed: what the others share stands there."""
        return self.runs[0].results

    @property
    def method(self) -> str:
        """The method, with the policy if it is not the method's own."""
        return spoken(self.results["method"], self.policy)

    @property
    def seeds(self) -> list[int | None]:
        """Of the runs."""
        return [run.results.get("seed") for run in self.runs]

    def points(self, kind: str) -> list[Point]:
        """Mean and deviation over seeds of `operating_points`, `random_routing` or `static_exits`, in their order."""
        return [make_point(rows) for rows in zip(*(rows[kind] for rows in self.rows), strict=True)]


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, deviation=1.4142135623730951)
        >>> spread([1.0])
        Spread(mean=1.0, deviation=None)
    """
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def make_point(rows: Sequence[Row]) -> Point:
    """A point from its row of each seed."""
    present = [key for key in FIGURES if all(row.get(key) is not None for row in rows)]
    figures = {key: spread([row[key] for row in rows]) for key in present}
    shares = [fmean(share) for share in zip(*(row["exit_fractions"] for row in rows), strict=True)]
    return Point(rows[0]["name"], figures, shares)


def random_routing(row: Row, exits: Sequence[Row]) -> Row:
    """What is expected of routing as many samples to each exit, drawn at random, at the same MACs.

    Accuracy, NLL and Brier are means over samples, so their expectation is exactly `sum_l fraction_l * figure_l` over
    the static exits. ECE and AURC are not means over samples: a mixture's ECE is not the mixture of ECEs, and is left
    out.

    Args:
        row: The operating point.
        exits: The static exits.

    Returns:
        A row without what is no mixture; its `gain` is the operating point's accuracy minus the mixture's.

    Example:
        >>> exits = [{"accuracy": 0.5, "nll": 2, "brier": 1}, {"accuracy": 1.0, "nll": 1, "brier": 0}]
        >>> point = {"name": "half", "accuracy": 0.875, "exit_fractions": [0.5, 0.5], "macs": 3, "macs_fraction": 0.75}
        >>> routed = random_routing(point, exits)
        >>> routed["accuracy"], routed["gain"]
        (0.75, 0.125)
    """
    shares = row["exit_fractions"]
    mixtures = {
        key: math.fsum(share * exit[key] for share, exit in zip(shares, exits, strict=True)) for key in MIXTURES
    }
    same = {key: row[key] for key in ("name", "macs", "macs_fraction", "exit_fractions")}
    return {**same, **mixtures, "gain": row["accuracy"] - mixtures["accuracy"]}


def rows_of(results: Results, reference_macs: int) -> dict[str, list[Row]]:
    """A run's operating points, the random routing in place of each, and its static exits.

    Args:
        results: Of the run.
        reference_macs: Denominator of `macs_fraction` and, at 32 bits, of `bitops_fraction`.
    """
    points, exits = (
        [{**row, **shares_of(row, reference_macs)} for row in results[key]] for key in ("operating_points", "exits")
    )
    routed = [random_routing(row, exits) for row in points]
    return {"operating_points": points, "random_routing": routed, "static_exits": exits}


def shares_of(row: Row, reference_macs: int) -> Row:
    """A row's cost by one denominator for all runs; a row without BitOPs runs at 32 bits.

    Example:
        >>> shares_of({"macs": 5, "bitops": 320}, 10), shares_of({"macs": 5}, 10)["bitops_fraction"]
        ({'macs_fraction': 0.5, 'bitops_fraction': 0.03125}, 0.5)
    """
    cost = row.get("bitops", bitops(row["macs"]))
    return {"macs_fraction": row["macs"] / reference_macs, "bitops_fraction": cost / bitops(reference_macs)}


def policy_of(point: str) -> str:
    """The policy in the name of an operating point; empty for the run's own.

    Example:
        >>> [policy_of(name) for name in ("patience-budget-0.5", "budget-0.5", "learned", "max_probability-risk-1e-05")]
        ['patience', '', '', 'max_probability']
    """
    named = CALIBRATED.fullmatch(point)
    return (named[1] or "") if named else ""


def load_runs(paths: Sequence[str], checkpoint: str = "last") -> list[Run]:
    """Read runs that can be compared.

    Args:
        paths: Run folders or `results.json` files.
        checkpoint: Whose results are taken in a folder, as for `eenet.runs.RunFolder.checkpoint`.

    Raises:
        UserError: A file is not there or of another kind, is given twice, has no chosen point, or is of other
            test data than the first.
    """
    runs: dict[Path, Run] = {}
    for text in paths:
        path = Path(text)
        if path.is_dir():
            own = RunFolder(path)
            named = own.last if checkpoint == "last" else own.checkpoint(checkpoint)
            path = own.file("results.json", named)
            check_weights(text, path, named)
        run = Run(path.parent, read_results(path))
        missing = [field for field in FIELDS if field not in run.results or run.results[field] in (None, {})]
        if not missing:
            leave_out_unchosen(run)
        if missing or not run.results["operating_points"]:
            lacks = ", ".join(missing or ["operating_points"])
            again = command("test", "--config", path.parent / "config.yaml")
            raise UserError("RUN", text, f"its results lack {lacks}; write them again with {again}")
        if path.resolve() in runs:
            raise UserError("RUN", text, "is given twice")
        runs[path.resolve()] = run
    first, *others = runs.values()
    for run in others:
        for this, that in zip(tested_on(run.results), tested_on(first.results), strict=True):
            if this != that:
                problem = f"its figures are of {this}, those of {first.folder} of {that}; only runs judged on the same"
                raise UserError("RUN", str(run.folder), f"{problem} samples can be compared")
    return list(runs.values())


def leave_out_unchosen(run: Run) -> None:
    """Take the points without figures out of a run's results, with a warning; a `UserError` where none is left."""
    kept = chosen_rows(run.results)
    for line in not_chosen_lines(run.results["operating_points"]):
        if not kept:
            raise UserError("RUN", str(run.folder), line)
        warnings.warn(f"{run.folder}: left out: {line}", stacklevel=2)
    run.results["operating_points"] = kept


def tested_on(results: Results) -> Iterator[str]:
    """What samples the results are of, coarse to fine: data, split, and the digest of the split's rows."""
    split, record = results["split"], results.get("data_split") or {}
    yield results["data"]
    yield f"its {split} split" + (f", of which {results['part']}" if results.get("part") else "")
    rows, digest = record.get("sizes", {}).get(split, "unknown"), record.get("digest", {}).get(split, "unknown")
    yield f"a {split} split of {rows} samples with digest {digest[:12]}"


def group_runs(runs: Sequence[Run], reference_macs: int) -> list[Group]:
    """Put together the runs that differ by their seed, and take the points of several policies apart.

    Args:
        runs: The runs.
        reference_macs: Denominator of `macs_fraction`.

    Raises:
        UserError: Two of them have one seed, or other operating points.
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        others = together.setdefault(run.key, [])
        for other in others:
            check_seed_only(run, other)
        others.append(run)
    members = [sorted(found, key=lambda run: run.results.get("seed") or 0) for found in together.values()]
    groups = []
    for label, found in zip(labels_of(members), members, strict=True):
        rows = [rows_of(run.results, reference_macs) for run in found]
        policies = dict.fromkeys(policy_of(row["name"]) for row in rows[0]["operating_points"])
        groups += [Group(label, policy, found, [of_policy(policy, run) for run in rows]) for policy in policies]
    return groups


def labels_of(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A short name for each group of runs: of what their folders share, else of the first one's."""
    stems = [{run.stem for run in runs} for runs in groups]
    taken = [stem for found in stems for stem in found]
    paths = [
        next(iter(found)) if len(found) == 1 and taken.count(min(found)) == 1 else runs[0].folder.resolve()
        for found, runs in zip(stems, groups, strict=True)
    ]
    for i, (path, (run, *_)) in enumerate(zip(paths, groups, strict=True)):
        if paths.count(path) > 1:  # two checkpoints of one run
            stems[i] = {path.with_name(f"{path.name} ({run.results.get('checkpoint', 'last')})")}
        else:
            stems[i] = {path}
    names = short_names([min(found) for found in stems])
    return [names[min(found)] for found in stems]


def of_policy(policy: str, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """A run's rows with the points of one policy alone."""
    return {
        kind: points if kind == "static_exits" else [row for row in points if policy_of(row["name"]) == policy]
        for kind, points in rows.items()
    }


def check_seed_only(run: Run, other: Run) -> None:
    """Refuse to average runs of one seed, or at other operating points."""
    points = [[(row["name"], row.get("asked")) for row in found.results["operating_points"]] for found in (run, other)]
    if points[0] != points[1]:
        this, that = ([name if asked is None else f"{name} {asked}" for name, asked in found] for found in points)
        problem = f"its operating points: {this}, those of {other.folder}: {that}; runs that differ by their seed only"
        raise UserError("RUN", str(run.folder), f"{problem} are averaged, so test both alike")
    if run.results.get("seed") == other.results.get("seed"):
        problem = f"is the same run as {other.folder} by all that was recorded, seed {run.results.get('seed')} included"
        raise UserError("RUN", str(run.folder), f"{problem}; give one of them")
