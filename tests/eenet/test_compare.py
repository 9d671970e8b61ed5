import base64
import hashlib
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eenet.errors import UserError
from eenet.metrics import sample_statistics
from eenet.policies.random import RandomExits
from eenet.profile import CostProfile
from eenet.reporting import evaluate, write_json
from eenet.reporting.compare import FIGURES, Run, load_runs, random_routing
from eenet.reporting.compare_bitops import quantized_lines
from eenet.reporting.compare_curves import Budgets, Comparison, compare, curve_area, parse_budgets, to_dict
from eenet.reporting.compare_figures import FIGURES as DRAWN
from eenet.reporting.compare_figures import accuracy_cost, calibration_cost, draw_all, exit_histogram, svg
from eenet.reporting.compare_page import page
from eenet.reporting.compare_table import areas_sheet, exits_sheet, points_sheet
from eenet.reporting.compare_verdict import latency_sheet, verdict
from eenet.runs import RunFolder
from tests._dummies.results import EXIT_ACCURACIES, make_results, make_static, write_run

pytestmark = pytest.mark.usefixtures("drawn")

BUDGETS = Budgets(0.5, 1.0)
fractions = st.floats(0.01, 1)


def compared(**runs: dict[str, Any]) -> Comparison:
    """Compare results by folder name; `_seed_` in a name stands for the seed part.

    Runs of other names were given something else beside the defaults, as long as they do not say what.
    """
    for name, results in runs.items():
        if not results["identity"]["fields"]:
            results["identity"]["fields"] = {"model.tradeoff": name.split("_seed_")[0]}
    folders = {Path("/runs") / name.replace("_seed_", ",seed="): results for name, results in runs.items()}
    return compare([Run(folder, results) for folder, results in folders.items()], BUDGETS)


def test_random_routing_is_what_random_exits_give_on_average() -> None:
    samples, shares = 200_000, [0.2, 0.5, 0.3]
    logits = torch.randn(samples, 3, 4) * torch.tensor([0.5, 1.0, 2.0])[:, None]
    labels = torch.where(torch.rand(samples) < 0.6, logits[:, 2].argmax(-1), torch.randint(4, (samples,)))
    logits += torch.nn.functional.one_hot(labels, 4)[:, None] * torch.tensor([0.3, 1.0, 2.0])[:, None]
    costs = CostProfile(1, (10, 20, 30), 2, (3, 3), (1, 1), (0, 1))
    statistics = sample_statistics(logits, labels)
    scores = torch.zeros(samples, 2)
    drawn = evaluate(statistics, logits.argmax(-1), scores, {"random": RandomExits(shares)}, costs)
    (point,) = drawn["operating_points"]
    expected = random_routing(point, drawn["exits"])
    assert expected["accuracy"] == pytest.approx(point["accuracy"], abs=5 * 0.5 / samples**0.5)
    assert expected["nll"] == pytest.approx(point["nll"], abs=5 * statistics[..., 2].std().item() / samples**0.5)
    assert expected["brier"] == pytest.approx(point["brier"], abs=5 * statistics[..., 3].std().item() / samples**0.5)
    assert expected["macs"] == point["macs"]
    assert "ece" not in expected
    assert abs(point["ece"] - np.dot(shares, [row["ece"] for row in drawn["exits"]])) > 0.001


@given(st.lists(st.tuples(fractions, fractions), min_size=1, max_size=6), st.lists(fractions, min_size=2, max_size=2))
def test_the_area_is_the_mean_height_of_the_envelope(points: list[tuple[float, float]], ends: list[float]) -> None:
    low, high = sorted(ends)
    if high - low < 0.01:
        return

    def height(budget: float) -> float:
        """The definition, read literally."""
        raised = {cost: max(a for c, a in points if c <= cost) for cost, _ in points}
        before = max(cost for cost in raised if cost <= budget)
        after = [cost for cost in raised if cost > budget]
        if not after:
            return raised[before]
        weight = (budget - before) / (min(after) - before)
        return (1 - weight) * raised[before] + weight * raised[min(after)]

    area = curve_area(*zip(*points, strict=True), Budgets(low, high))
    if min(cost for cost, _ in points) > low:
        assert area is None
    else:
        middles = low + (high - low) * (np.arange(500) + 0.5) / 500  # off by a 500th of the rise at most
        assert area == pytest.approx(np.mean([height(budget) for budget in middles]), abs=2e-3)


def test_a_dominated_point_and_a_later_one_change_nothing_between_the_budgets() -> None:
    flat = curve_area([0.2], [0.9], BUDGETS)
    assert flat == pytest.approx(0.9)
    assert curve_area([0.2, 0.7], [0.9, 0.1], BUDGETS) == pytest.approx(0.9)
    assert curve_area([0.2, 0.2], [0.1, 0.9], BUDGETS) == pytest.approx(0.9)
    assert curve_area([0.5, 1.0, 2.0], [0.8, 0.9, 1.0], BUDGETS) == pytest.approx(0.85)


@pytest.mark.parametrize("text", ["0.5", "0.5,0.5", "0.7,0.3", "0,0.5", "0.5,1.1", "a,b", "0.1,0.2,0.3", "nan,1"])
def test_wrong_budgets_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"budgets = .*rising fractions"):
        parse_budgets(text)


def test_seeds_are_averaged() -> None:
    accuracies, shares = [0.6, 0.65, 0.75], [0.5, 0.4, 0.3]
    runs = {
        f"tradeoff=1_seed_{seed}": make_results([("learned", share, accuracy)], seed=seed)
        for seed, (share, accuracy) in enumerate(zip(shares, accuracies, strict=True))
    }
    (curve,) = compared(**runs).curves
    (group,) = curve.groups
    assert (group.label, group.seeds, curve.name) == ("tradeoff=1", [0, 1, 2], "JEI-DNN")
    (point,) = group.points("operating_points")
    assert point.figures["accuracy"] == pytest.approx((np.mean(accuracies), np.std(accuracies, ddof=1)))
    macs = 1 - np.array(shares) / 2
    assert point.figures["macs_fraction"] == pytest.approx((macs.mean(), macs.std(ddof=1)))
    assert point.shares == pytest.approx([0.4, 0.6])
    (random,) = group.points("random_routing")
    mixed = [share * EXIT_ACCURACIES[0] + (1 - share) * EXIT_ACCURACIES[1] for share in shares]
    assert random.figures["accuracy"] == pytest.approx((np.mean(mixed), np.std(mixed, ddof=1)))
    area = curve.areas["static_exits"].value
    assert area == pytest.approx((np.mean(EXIT_ACCURACIES), 0))


def test_several_lambdas_form_one_curve_whose_area_is_taken_by_seed() -> None:
    runs = {}
    for seed, (cheap, dear) in enumerate([(0.6, 0.8), (0.7, 0.8)]):
        runs[f"tradeoff=1_seed_{seed}"] = make_results([("learned", 1.0, cheap)], seed=seed)
        runs[f"tradeoff=0_seed_{seed}"] = make_results([("learned", 0.0, dear)], seed=seed)
    runs["tradeoff=0_seed_2"] = make_results([("learned", 0.0, 0.1)], seed=2)
    (curve,) = compared(**runs).curves
    assert [group.label for group in curve.groups] == ["tradeoff=1", "tradeoff=0"]
    assert curve.areas["operating_points"].value == pytest.approx((0.725, np.std([0.7, 0.75], ddof=1)))
    assert len(curve.points("operating_points")) == 2


def test_points_without_a_seed_in_common_have_no_area() -> None:
    (curve,) = compared(a=make_results(seed=0), b=make_results(seed=1)).curves
    assert curve.areas["operating_points"] == (None, "undefined: no seed has all of its points")


def test_runs_with_several_points_or_other_exits_are_curves_of_their_own() -> None:
    budgets = [("budget-0.6", 0.8, 0.6), ("budget-0.8", 0.4, 0.7)]
    comparison = compared(
        one=make_results(budgets), two=make_results(budgets), three=make_results(), four=make_results(exit_stages=[1])
    )
    assert [curve.name for curve in comparison.curves] == [
        f"JEI-DNN ({name})" for name in ("one", "two", "three", "four")
    ]


def test_policies_of_one_run_are_curves_of_their_own() -> None:
    names = ["budget-0.6", "patience-budget-0.6", "budget-0.9", "patience-budget-0.9"]
    results = make_results([(name, 0.2 * n, 0.6 + n / 10) for n, name in enumerate(names)])
    comparison = compared(a=results)
    assert [curve.name for curve in comparison.curves] == ["JEI-DNN", "JEI-DNN, patience"]
    assert [[point.name for _, point in curve.points("operating_points")] for curve in comparison.curves] == [
        ["budget-0.9", "budget-0.6"],
        ["patience-budget-0.9", "patience-budget-0.6"],
    ]
    assert list(exits_sheet(comparison).sections) == ["a"]
    assert len(accuracy_cost(comparison).axes[0].containers) == 5


def test_static_models_stand_at_their_share_of_the_dearest_backbone() -> None:
    comparison = compared(
        large=make_static(1000, 0.9), exits=make_results(), small=make_static(500, 0.7, backbone={"family": "ViT"})
    )
    static, routed = comparison.curves
    assert (static.name, routed.name) == ("static models", "JEI-DNN")
    assert [point.figures["macs_fraction"].mean for _, point in static.points("operating_points")] == [0.5, 1.0]
    assert static.areas["operating_points"].value == pytest.approx((0.8, None))
    assert routed.areas["operating_points"].value is None
    assert "75.0 % (seed 0), more than the lower budget of 50 %" in routed.areas["operating_points"].note


def test_a_curve_that_ends_below_the_budgets_says_so() -> None:
    (curve, _) = compared(a=make_static(500, 0.7), b=make_results(backbone={"family": "Bert"})).curves
    assert curve.areas["operating_points"].value == pytest.approx((0.7, None))
    assert "no point costs more than 50.0 %" in curve.areas["operating_points"].note


def test_aurc_is_shown_where_it_is_and_other_new_fields_are_left_out() -> None:
    results = make_results()
    for row in results["operating_points"]:
        row |= {"aurc": 0.125, "coverage": 0.9, "set_size": 1.5, "calibrated": True, "ece_mass": None}
    sheet = points_sheet(compared(a=results, b=make_results(method="decoupled")))
    column = sheet.headings.index("AURC %")
    assert [row[column] for rows in sheet.sections.values() for row in rows] == ["12.50", "–"]
    assert "AURC %" not in points_sheet(compared(b=make_results())).headings
    assert "AURC %" not in exits_sheet(compared(a=results)).headings
    assert set(compared(a=results).curves[0].points("operating_points")[0][1].figures) == {*FIGURES} - {
        *("gain", "balanced_accuracy", "macro_f1")
    }
    for row in results["operating_points"]:
        row |= {"balanced_accuracy": 0.25, "macro_f1": 0.125}
    sheet = points_sheet(compared(a=results, b=make_results(method="decoupled")))
    for heading, value in (("balanced %", "25.00"), ("F1 %", "12.50")):
        column = sheet.headings.index(heading)
        assert [row[column] for rows in sheet.sections.values() for row in rows] == [value, "–"]


def make_paths(seed: int) -> dict[str, Any]:
    """QuEE's results: two static networks at 8 bits, and a budget of two that can be met at 32 bits."""
    results = make_results([("budget-0.1", 0.5, 0.7)], method="quee", seed=seed)
    for row in (*results["operating_points"], *results["exits"]):
        row["bitops"] = 64 * row["macs"]
    judged = {"accuracy": 0.6 + 0.2 * seed, "cost": 0.05, "width": 8, "knob": 0.9}
    budgets = [{"budget": budget, "early_exit": judged if budget > 0.1 else None} for budget in (0.1, 0.5)]
    at_budgets = [{**row, "quantized_early_exit": judged} for row in budgets]
    return {**results, "static_widths": {"8": results["exits"]}, "at_budgets": at_budgets}


def test_bitops_are_compared_where_a_run_is_quantized() -> None:
    assert not compared(a=make_results()).quantized
    comparison = compared(a=make_results(full=2000), q_seed_0=make_paths(0), q_seed_1=make_paths(1))
    assert comparison.quantized
    sheet = points_sheet(comparison)
    column = sheet.headings.index("BitOPs %")
    shown = {name: [row[column] for row in rows] for name, rows in sheet.sections.items()}
    assert shown == {"QuEE": ["2.34±0.00"], "JEI-DNN": ["75.00"]}  # 64 / 1024 of 750 MACs in 2,000
    lines = quantized_lines(comparison)
    points = {
        name: [(p.figures["bitops_fraction"].mean, p.figures["accuracy"].mean) for p in line]
        for name, line in lines.items()
    }
    judged = pytest.approx((0.025, 0.7))  # half of the reference's BitOPs, mean of two seeds
    assert points == {
        "static exits, a": [(0.5, EXIT_ACCURACIES[0]), (1.0, EXIT_ACCURACIES[1])],
        "static networks, 8 bits": [(1 / 64, EXIT_ACCURACIES[0]), (1 / 32, EXIT_ACCURACIES[1])],
        "early exit by confidence, 32 bits": [judged],
        "early exit by confidence, best width": [judged, judged],
    }
    assert lines["early exit by confidence, 32 bits"][0].figures["accuracy"].deviation == pytest.approx(0.2 / 2**0.5)
    figures = draw_all(comparison)
    assert set(figures) == {*DRAWN, "accuracy_bitops"}
    (axes,) = figures["accuracy_bitops"].axes
    assert axes.get_xscale() == "log"
    assert {line.get_label() for line in axes.containers} == {*points, "QuEE", "JEI-DNN"}
    assert "accuracy bitops" in page(comparison, {name: svg(figure) for name, figure in figures.items()}, "")
    assert set(draw_all(compared(a=make_results()))) == {*DRAWN}


def test_the_table_shows_mean_deviation_and_the_gain_over_random_routing() -> None:
    runs = {f"a_seed_{n}": make_results([("learned", 0.5, 0.7 + 0.1 * n)], seed=n) for n in range(2)}
    sheet = points_sheet(compared(**runs))
    (row,) = sheet.sections["JEI-DNN"]
    shown = dict(zip(sheet.headings, row, strict=True))
    assert shown["operating point"] == "a: learned"
    assert shown["accuracy %"] == "75.00±7.07"
    assert (shown["random %"], shown["over random"]) == ("65.00±0.00", "+10.00±7.07")
    assert shown["leaving at each exit %"] == "50 50"
    assert "below the cheapest one it is undefined" in areas_sheet(compared(**runs)).caption


REFUSED = {
    "other data": ({"data": "other"}, "of other, those of .*/a of noise"),
    "validation": ({"split": "val"}, "of its val split, those of .*/a of its test split"),
    "a part": (
        {"part": "the test saw 1 of 2 batches"},
        "saw 1 of 2 batches, those of .*/a of its test split;",
    ),
    "other rows": ({"data_split": {"sizes": {"test": 9}, "digest": {"test": "xyz"}}}, "9 samples with digest xyz.*abc"),
    "unknown rows": ({"data_split": None}, "unknown"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_runs_on_other_samples_are_refused_by_name(name: str, tmp_path: Path) -> None:
    fields, message = REFUSED[name]
    first, second = write_run(tmp_path / "a", make_results()), write_run(tmp_path / "b", make_results(**fields))
    with pytest.raises(UserError, match=message) as error:
        load_runs([first, second])
    assert error.value.value == second


def test_results_of_replaced_weights_are_refused(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"before").hexdigest()
    run, last = write_run(tmp_path / "a", make_results(checkpoint_digest=digest)), RunFolder(tmp_path / "a").last
    last.parent.mkdir()
    last.write_bytes(b"before")
    assert len(load_runs([run])) == 1
    last.write_bytes(b"after")
    with pytest.raises(UserError, match="of weights before the last training"):
        load_runs([run])


def test_another_training_split_is_accepted(tmp_path: Path) -> None:
    other = {"sizes": {"test": 100}, "digest": {"test": "abc", "train": "other"}}
    first, second = write_run(tmp_path / "a", make_results()), write_run(tmp_path / "b", make_results(data_split=other))
    assert [str(run.folder) for run in load_runs([first, f"{second}/results.json"])] == [first, second]


def test_points_that_nothing_has_chosen_are_left_out_with_a_warning(tmp_path: Path) -> None:
    unchosen = {"name": "budget-0.5", "chosen": False, "why": "no whole validation has chosen it; do this"}
    some, none = make_results(), make_results([])
    some["operating_points"].append(unchosen)
    none["operating_points"].append(unchosen)
    with pytest.warns(UserWarning, match=r"left out: not chosen: budget-0\.5: no whole validation .*; do this"):
        (run,) = load_runs([write_run(tmp_path / "some", some)])
    assert [row["name"] for row in run.results["operating_points"]] == ["learned"]
    with pytest.raises(UserError, match=r"not chosen: budget-0\.5: no whole validation has chosen it"):
        load_runs([write_run(tmp_path / "none", none)])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", make_results())
    poor = write_run(tmp_path / "poor", {"schema": 1, "operating_points": []})
    for paths, message in (
        ([str(tmp_path)], "cannot be read"),
        ([good, str(Path(good) / "results.json")], "is given twice"),
        ([poor], "lack method, identity, data"),
        ([write_run(tmp_path / "empty", make_results([]))], "lack operating_points"),
    ):
        with pytest.raises(UserError, match=message):
            load_runs(paths)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1, "operating_points": make_results([("other", 0.5, 0.7)])["operating_points"]}, "operating points"),
        (
            {
                "seed": 1,
                "operating_points": [row | {"asked": {"budget": 1.0}} for row in make_results()["operating_points"]],
            },
            r"operating points: .*'budget': 1\.0",
        ),
        ({"seed": 0}, "is the same run as .*a,seed=0 by all that was recorded, seed 0 included"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compared(a_seed_0=make_results(), a_seed_1=make_results(**fields))


def group_labels(*runs: tuple[str, dict[str, Any]]) -> list[list[tuple[str, list[int | None]]]]:
    """Labels and seeds of the groups of each curve, of results by folder."""
    comparison = compare([Run(Path("/runs", folder), results) for folder, results in runs], BUDGETS)
    return [[(group.label, group.seeds) for group in curve.groups] for curve in comparison.curves]


@pytest.mark.parametrize(
    "fields",
    [
        {"given": {"model.network.gate": "MLPGate"}},
        {"given": {"trainer.max_epochs": 3}},
        {"method": "decoupled"},
        {"exit_stages": [1]},
        {"backbone": {"family": "ResNet"}},
        {"checkpoint": "epoch=3"},
    ],
)
def test_whatever_else_differs_makes_two_curves(fields: dict[str, Any]) -> None:
    curves = group_labels(*((f"{name}/seed{n}", make_results(seed=n, **given)) for name, given in
        (("one", {}), ("two", fields)) for n in (0, 1)))  # fmt: skip
    assert curves == [[("one", [0, 1])], [("two", [0, 1])]]


def test_the_seed_is_the_field_and_not_the_folder() -> None:
    backbones = [{"model.backbone_checkpoint": f"vit_seed{n}"} for n in (3, 4)]
    same = ((name, make_results(seed=n, given=given)) for name, n, given in zip("ba", (3, 4), backbones, strict=True))
    assert group_labels(*same) == [[("b", [3, 4])]]
    same = (("x,seed=0", make_results(seed=0)), ("x,seed=1", make_results(seed=1, given={"data.batch_size": 8})))
    assert group_labels(*same) == [[("x,seed=0", [0])], [("x,seed=1", [1])]]
    two = (("x", make_results(seed=0)), ("x", make_results(seed=0, checkpoint="epoch=3")))
    assert group_labels(*two) == [[("x (last)", [0])], [("x (epoch=3)", [0])]]


def test_only_lambda_and_budgets_move_along_a_curve() -> None:
    runs = ((f"t{n}", make_results(given={"model.tradeoff": n})) for n in range(2))
    assert [len(curve) for curve in group_labels(*runs)] == [2]
    runs = ((f"t{n}", make_results(given={"model.tradeoff": n, "model.warmup_epochs": n})) for n in range(2))
    assert [len(curve) for curve in group_labels(*runs)] == [1, 1]


def test_results_of_before_say_how_to_write_them_again(tmp_path: Path) -> None:
    results = make_results()
    del results["identity"]
    old = write_run(tmp_path / "old run", results)
    with pytest.raises(UserError, match=r"lack identity; .*`eenet test --config '.*old run/config\.yaml'`"):
        load_runs([old])


def test_the_figures_draw_every_line() -> None:
    comparison = compared(
        small=make_static(500, 0.7),
        a_seed_0=make_results([("learned", 0.5, 0.6)]),
        a_seed_1=make_results([("learned", 0.5, 0.8)], seed=1),
    )
    (axes,) = accuracy_cost(comparison).axes
    lines = {tuple(container[0].get_xydata().flatten().round(6)) for container in axes.containers}
    static_exits = (50.0, 50.0, 100.0, 80.0)
    assert lines == {static_exits, (75.0, 70.0), (75.0, 65.0), (50.0, 70.0)}
    (point,) = (c for c in axes.containers if tuple(c[0].get_xydata()[0].round(6)) == (75.0, 70.0))
    (bars,) = point[2]
    (segment,) = bars.get_segments()
    assert segment[:, 1] == pytest.approx(
        [70 - 100 * np.std([0.6, 0.8], ddof=1), 70 + 100 * np.std([0.6, 0.8], ddof=1)]
    )
    ece, nll = calibration_cost(comparison).axes
    assert (len(ece.containers), len(nll.containers)) == (3, 4)
    shares = exit_histogram(comparison).axes[0].patches
    assert [bar.get_width() for bar in shares] == pytest.approx([50, 50])


class Page(HTMLParser):
    """Open tags, what a browser would fetch, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_escaped_and_self_contained() -> None:
    evil = '<script>alert("&")</script>'
    comparison = compared(**{"x$_$[red]&<b>": make_results([(evil, 0.5, 0.7)], method=evil, data=evil)})
    drawn = {name: svg(draw(comparison)) for name, draw in DRAWN.items()}
    text = page(comparison, drawn, f"eenet compare {evil}")
    parsed = Page(text)
    assert parsed.stack == []
    assert "script" not in parsed.tags
    assert "b" not in parsed.tags
    assert parsed.text.count(evil) >= 4
    assert "x$_$[red]&<b>" in parsed.text
    assert "digest abc" in parsed.text
    assert parsed.text.count("below the cheapest one it is undefined") == 1  # among the definitions
    assert len(parsed.sources) == 3
    for source in parsed.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        image = ElementTree.fromstring(base64.b64decode(data))
        links = [value for node in image.iter() for name, value in node.attrib.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)
    assert text == page(
        comparison, {name: svg(draw(comparison)) for name, draw in DRAWN.items()}, f"eenet compare {evil}"
    )


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ((0.60, 0.62, 0.64), "10.00 ± 0.00 points ahead of decoupled exits: more than the spread over 3 seeds."),
        ((0.80, 0.62, 0.71), "1.00 ± 10.15 points ahead of decoupled exits: not more than the spread over 3 seeds, so"),
        ((0.60, 0.62), "10.00 ± 0.00 points ahead of decoupled exits: 2 seeds, which are too few to say so."),
    ],
)
def test_the_verdict_names_the_best_and_doubts_what_the_seeds_do_not_show(theirs: tuple, expected: str) -> None:
    runs = {}
    for seed, accuracy in enumerate(theirs):
        runs[f"jei_seed_{seed}"] = make_results([("learned", 0.5, 0.70 + 0.02 * seed)], seed=seed)
        runs[f"other_seed_{seed}"] = make_results([("learned", 0.5, accuracy)], seed=seed, method="decoupled")
    low, high, full = verdict(compared(**runs))
    assert low == "Within 50 % of the MACs: no curve has a point that is cheap enough."
    assert expected in high
    assert full == "The full network: 80.00 ± 0.00 % right."


def test_the_verdict_compares_a_lone_method_with_the_full_network() -> None:
    runs = {f"jei_seed_{seed}": make_results([("learned", 0.5, 0.70)], seed=seed) for seed in range(3)}
    _, high, full = verdict(compared(**runs))
    assert high.endswith("10.00 ± 0.00 points below the full network: more than the spread over 3 seeds.")
    spread = {f"jei_seed_{seed}": make_results([("learned", 0.5, 0.75 + 0.1 * seed)], seed=seed) for seed in range(3)}
    assert "5.00 ± 10.00 points ahead of the full network: not more than the spread" in verdict(compared(**spread))[1]
    (alone,) = [line for line in verdict(compared(a=make_results([("learned", 0.5, 0.70)]))) if "points" in line]
    assert alone.endswith("10.00 points below the full network: one seed, so that nothing is known of the spread.")
    assert full == "The full network: 80.00 ± 0.00 % right."


def test_the_verdict_says_that_one_seed_shows_nothing_and_the_clock_has_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_run(folder, make_results())
    row = {"name": "full network", "p50_ms": 2.0, "theoretical_speedup": 1.0, "realised_speedup": 1.0}
    on = {"device": "cpu", "threads": 1, "dtype": "float32", "torch": "2", "runtime": "torch", "compiled": True}
    bench = {**on, "batches": [{"batch_size": 1, "rows": [row]}]}
    (folder / "bench.json").write_text(json.dumps(bench))
    other = write_run(tmp_path / "b", make_results(method="decoupled"))
    comparison = compare(load_runs([str(folder), other]), Budgets(0.75, 1.0))
    assert "one seed in common" in verdict(comparison)[0]
    assert latency_sheet(comparison).sections == {
        "a, seed 0: batch 1, cpu, 1 threads, float32, torch 2, compiled": [["full network", "2.00", "1.00", "1.00"]]
    }
    best = make_results(checkpoint="epoch=1")
    assert latency_sheet(compare([Run(folder, best)], BUDGETS)).sections == {}  # those are times of the last one
    (folder / "bench.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        latency_sheet(comparison)


@pytest.mark.parametrize("record", [None, {"name": "loaders", "inputs": None, "labels": None}])
def test_the_page_says_when_the_samples_are_not_known(record: dict | None) -> None:
    comparison = compared(a=make_results(data_split=record))
    assert "taken on trust" in page(comparison, {}, "eenet compare a")


def test_the_json_is_plain_and_says_what_is_undefined(tmp_path: Path) -> None:
    comparison = compared(small=make_static(500, 0.7), a=make_results())
    write_json(tmp_path / "comparison.json", to_dict(comparison))
    values = json.loads((tmp_path / "comparison.json").read_text())
    static, routed = values["curves"]
    assert static["groups"][0]["operating_points"][0]["macs_fraction"] == {"mean": 0.5, "deviation": None}
    assert set(routed["areas"]) == {"operating_points", "random_routing", "static_exits"}
    assert list(routed["areas"]["operating_points"]) == ["note"]
    assert routed["groups"][0]["random_routing"][0]["accuracy"]["mean"] == pytest.approx(0.65)
    assert values["reference_macs"] == 1000
