"""The study of layer selection in a decoder: both families of plans, the oracle, the controllers."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from rich.table import Table as RichTable
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import eenet
from datamodules.nlg import NLG
from datamodules.text import READERS
from eenet.api.decoders import check_device, open_model
from eenet.cli.options import names
from eenet.decoding.costs import count_decoder
from eenet.decoding.executor import Keys, Prompt
from eenet.decoding.figures import controllers_figure, curves_figure, oracle_figure
from eenet.decoding.gating import LayerGates, load_gates
from eenet.decoding.intervals import oracle_interval, score_intervals
from eenet.decoding.observe import Table
from eenet.decoding.plans import LayerPlan
from eenet.decoding.probes import TokenProbes, controller_curve, enough, token_oracle_curve
from eenet.decoding.study import (
    Families,
    Measured,
    Oracle,
    Settings,
    gates_row,
    observed_curves,
    oracle_report,
    plan_families,
    score_texts,
    sequence_predictor,
    text_row,
)
from eenet.decoding.tuning import PlanWeights
from eenet.errors import UserError
from eenet.parsing.refusals import Parser
from eenet.reporting import save_figure, show, write_json
from lightning_modules.probes import train_probes

SCHEMA = 1
CONTROL = "random"
"""The family that no text is generated with, and that oracle and controllers do not choose from."""


def study_layers(
    model: str,
    data: str,
    out: str,
    *,
    budgets: str,
    tokens: int,
    batch_size: int,
    tau: float,
    seed: int,
    prompt: Prompt,
    keys: Keys,
    oracle: Oracle,
    skipping: str,
    tuned: str,
    gates: str,
    device: str,
    dtype: str,
    download: bool,
) -> None:
    """Make a study, or go on with one, as the arguments of `eenet layers` say, and report it.

    Raises:
        UserError: A model or data that cannot be used, or a folder that another study is using.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if not -1 < tau <= 1:
        raise UserError("tau", tau, "is a cosine similarity, above -1 and at most 1")
    place = check_device(device)
    read = load_data(data)
    gpt, tokenizer = open_model(model, download, place, dtype)
    sizes = parse_budgets(budgets, gpt.num_stages)
    settings = Settings(sizes, tokens, batch_size, seed, prompt, keys).check(gpt.num_stages)
    families = plan_families(gpt.num_stages, sizes, seed, names(skipping))
    weights = PlanWeights(gpt, names(tuned))
    loaded = {path: load_gates(path, gpt) for path in names(gates)}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            found = run_study(weights, tokenizer, read, families, loaded, settings, tau, folder, oracle)
            report({"model": model, **found}, folder)
    except Timeout as error:
        raise UserError("out", str(folder), "another study is writing there; wait for it or choose another") from error


def load_data(path: str) -> NLG:
    """Data from a configuration, or a file with the columns `prompt` and `reference`.

    Raises:
        UserError: There is no such file, or it describes no prompts and references.
    """
    if not Path(path).is_file():
        raise UserError("data", path, "there is no such file; configurations are in configs/nlg")
    if Path(path).suffix in READERS:
        return NLG(train=path, test=None)
    parser = Parser()
    parser.add_subclass_arguments(NLG, "data")
    try:
        config = parser.parse_object({"data": yaml.safe_load(Path(path).read_text(encoding="utf-8"))})
        return parser.instantiate_classes(config).data
    except Exception as error:
        if isinstance(error.__cause__ or error, UserError):
            raise
        raise UserError("data", path, f"is no configuration of prompts and references: {error}") from error


def parse_budgets(text: str, num_layers: int) -> tuple[int, ...]:
    """Numbers of layers from text; `all` is every number.

    Example:
        >>> parse_budgets("1,2,4", 4), parse_budgets("all", 3)
        ((1, 2, 4), (1, 2, 3))
    """
    if text == "all":
        return tuple(range(1, num_layers + 1))
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError("budgets", text, "must be `all` or numbers of layers such as 1,2,4,30") from error


def run_study(
    weights: PlanWeights,
    tokenizer: Any,
    data: NLG,
    families: Families,
    gates: Mapping[str, tuple[LayerGates, Mapping[str, Any]]],
    settings: Settings,
    tau: float,
    folder: Path,
    oracle: Oracle = "mean",
) -> dict[str, Any]:
    """Measure everything, or read what was measured before, and put it together.

    Args:
        weights: The decoders.
        tokenizer: Their tokenizer.
        data: Prompts and references.
        families: From `plan_families`.
        gates: From `load_gates`, by the names of their runs.
        settings: Of the study.
        tau: Similarity that is enough for the controllers' second target.
        folder: Of the study.
        oracle: What it compares a prompt's plan with.

    Returns:
        What `study.json` holds beside the model's name.
    """
    test = data.sequences("test", tokenizer)
    train = None if data.parts["train"] is None else data.sequences("train", tokenizer)
    if settings.prompt == "full" and max(map(len, test.continuations)) < 2:
        raise UserError("prompt", "full", "skips in references alone, and there are none; set --prompt plan")
    planned = {name: plans for name, plans in families.items() if name != CONTROL}
    measured = Measured(weights, test, families, settings, folder)
    table = measured.observed()
    study: dict[str, Any] = {
        "schema": SCHEMA,
        "data": data.name,
        "metric": data.metric if test.new_tokens else "similarity",
        "num_layers": weights.gpt.num_stages,
        "prompts": len(test),
        "judged_tokens": int(table["skips"].sum()),
        "settings": {**asdict(settings), "tau": tau, "oracle": oracle},
        "plans": {name: [str(plan) for plan in plans] for name, plans in families.items()},
        "weights": {name: [weights.name(plan) for plan in plans] for name, plans in families.items()},
        "curves": observed_curves(table, families),
        "gates": [],
        "oracle": {},
        "sequence_predictor": {},
        "controllers": [],
        "versions": {"eenet": eenet.__version__, "torch": torch.__version__},
    }
    if test.new_tokens:
        decode = partial(tokenizer.decode, skip_special_tokens=True)
        costs = count_decoder(weights.gpt)
        for run, (own, facts) in gates.items():
            row = gates_row(measured, own.to(next(weights.gpt.parameters()).device), facts["price"], costs, decode)
            study["gates"].append({"run": run, **row})
        scores = generate_families(measured, planned, decode, study["curves"], data.metric)
        for name in planned:
            for row, interval in zip(study["curves"][name], score_intervals(scores[name], settings.seed), strict=True):
                row |= interval
            study["oracle"][name] = oracle_report(scores[name], settings.budgets, oracle=oracle)
            if oracle == "mean":
                study["oracle"][name] |= oracle_interval(scores[name], settings.budgets, settings.seed)
            study["sequence_predictor"][name] = sequence_predictor(table, scores[name], settings.budgets, settings.seed)
    if train is not None:
        trained_on = Measured(weights, train, planned, settings, folder).observed()
        study["controllers"] = controllers(
            skipped_tokens(trained_on), skipped_tokens(table), list(planned), settings, tau
        )
    return study


def generate_families(
    measured: Measured,
    families: Families,
    decode: Callable[[list[int]], str],
    curves: dict[str, list[dict[str, float]]],
    metric: str,
) -> dict[str, Tensor]:
    """Generate with every plan, the dearest first, and add the texts' scores to the curves.

    Returns:
        Scores by the metric for each family, `(prompts, plans)`.
    """
    costs, references = count_decoder(measured.weights.gpt), measured.sequences.references
    scored: dict[LayerPlan, list[dict[str, Any]]] = {}
    summaries: dict[LayerPlan, dict[str, float]] = {}
    plans = {plan for family in families.values() for plan in family}
    for plan in sorted(plans, key=lambda plan: (-len(plan), str(plan))):
        rows = measured.generated(plan, costs)
        scored[plan] = score_texts(rows, references, decode)
        summaries[plan] = text_row(scored[plan], rows, references)
    for name, family in families.items():
        for row, plan in zip(curves[name], family, strict=True):
            row |= summaries[plan]
    return {
        name: torch.tensor([[row[metric] for row in scored[plan]] for plan in family]).T
        for name, family in families.items()
    }


def skipped_tokens(table: Table) -> Table:
    """The tokens that skip."""
    return {name: values[table["skips"]] for name, values in table.items()}


def controllers(
    train: Table, test: Table, families: Sequence[str], settings: Settings, tau: float
) -> list[dict[str, Any]]:
    """Train a probe of each kind for each family and target, and judge it on the test tokens.

    For exiting, the probe of `k` layers reads the hidden state after them; for skipping, all read the one after the
    first budget's layers, as the plan must be chosen there.
    """
    costs, panels = torch.tensor(settings.budgets), []
    for number, family in enumerate(families):
        for target, threshold in (("same top token", None), (f"similarity of {tau}", tau)):
            goal = [
                enough(part["agreement"][:, number], part["similarity"][:, number], threshold) for part in (train, test)
            ]
            curves = {}
            for kind in ("linear", "mlp"):
                torch.manual_seed(settings.seed)
                probes = TokenProbes(train["states"].shape[-1], len(costs), kind)
                train_probes(probes, read_states(train, family), goal[0], train["row"], settings.seed)
                with torch.no_grad():
                    curves[kind] = controller_curve(probes(read_states(test, family)), goal[1], costs)
            if family == "early":
                curves["similarity"] = controller_curve(test["step"][:, :-1], goal[1], costs)
            oracle = token_oracle_curve(goal[1], costs)
            picks = torch.linspace(0, len(oracle) - 1, min(60, len(oracle))).long().tolist()
            panels.append(
                {
                    "family": family,
                    "target": target,
                    "curves": curves,
                    "oracle": [list(oracle[pick]) for pick in picks],
                    "fixed": goal[1].double().mean(dim=0).tolist(),
                }
            )
    return panels


def read_states(table: Table, family: str) -> Tensor:
    """What the probes of a family read, `(tokens, plans, dim)`."""
    states = table["states"]
    return states if family == "early" else states[:, :1].expand_as(states)


def report(study: dict[str, Any], folder: Path) -> None:
    """Write `study.json`, the figures and TensorBoard events, and print the curves."""
    write_json(folder / "study.json", study)
    figures = {"curves": curves_figure(study)}
    if study["oracle"]:
        figures["oracle"] = oracle_figure(study)
    if study["controllers"]:
        figures["controllers"] = controllers_figure(study)
    rmtree(folder / "tensorboard", ignore_errors=True)  # of this study before it was killed, or had other budgets
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for family, rows in study["curves"].items():
            for row in rows:
                for name, value in row.items():
                    writer.add_scalar(f"{name}/{family}", value, row["k"])
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png")
            writer.add_figure(name, figure)
    tuned = any(name for rows in study["weights"].values() for name in rows)
    columns = [
        "k",
        *(["weights"] if tuned else []),
        "similarity",
        "agreement",
        "kl",
        "prompt_perplexity",
        "reference_perplexity",
        study["metric"],
        "score_low",
        "score_high",
    ]
    table = RichTable("family", *columns, title=f"{study['model']} on {study['prompts']} prompts of {study['data']}")
    for family, rows in study["curves"].items():
        for row, name in zip(rows, study["weights"][family], strict=True):
            cells = {key: f"{value:.4g}" for key, value in row.items()} | {"weights": name or "untuned"}
            table.add_row(family, *(cells.get(column, "") for column in columns))
        table.add_section()
    for row in study["gates"]:
        cells = {column: f"{row[column]:.4g}" for column in columns if row.get(column) is not None}
        cells["k"] = f"{row['layers'] or math.nan:.2f}"
        table.add_row(f"gates on {row['reads']}", *(cells.get(column, "") for column in columns))
    show(table)
    for family, oracle in study["oracle"].items():
        interval = f", {oracle['layers_low']:.2f} to {oracle['layers_high']:.2f}" if "layers_low" in oracle else ""
        share = f"{100 * oracle['layers_fraction']:.1f} %{interval}"
        found = f"{oracle['layers']:.2f} layers ({share}), score {oracle['score']:.4f}"
        print(f"oracle ({study['settings']['oracle']}) over {family} plans: {found}")
    print(f"results: {folder / 'study.json'}")
