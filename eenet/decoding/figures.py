"""Figures of the study of layer selection."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LABELS = {
    "early": "early exit",
    "strided": "strided skipping",
    "uniform": "uniform skipping",
    "random": "random skipping",
}
COLOURS = {"early": "C3", "strided": "C1", "uniform": "C0", "random": "0.6"}
MEASURES = {
    "similarity": "cosine similarity to the full model",
    "agreement": "top token as the full model's",
    "kl": "KL to the full model (nats)",
    "prompt_perplexity": "perplexity of the prompts",
    "reference_perplexity": "perplexity of the references",
}


def curves_figure(study: dict[str, Any]) -> "Figure":
    """Every measure against the number of layers, a line for each family."""
    from matplotlib.figure import Figure

    curves, metric = study["curves"], study["metric"]
    labels = {**MEASURES, metric: f"{metric} of the generated text"}
    names = [name for name in labels if name in curves["early"][0]]
    figure = Figure(figsize=(10, 3 * -(-len(names) // 3)), layout="constrained", dpi=72)
    grid = figure.subplots(-(-len(names) // 3), 3, squeeze=False).flatten()
    for axes, name in zip(grid, names, strict=False):
        for family, rows in curves.items():
            if name not in rows[0]:
                continue
            layers, values = [row["k"] for row in rows], [row[name] for row in rows]
            axes.plot(layers, values, "o-", markersize=3, color=COLOURS[family], label=LABELS[family])
        if "perplexity" in name or name == "kl":
            axes.set_yscale("symlog" if name == "kl" else "log")
        axes.set_ylabel(labels[name])
        axes.grid(alpha=0.3)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    grid[0].legend()
    figure.supxlabel(f"layers run of {study['num_layers']}")
    return figure


def oracle_figure(study: dict[str, Any]) -> "Figure":
    """Score against mean layers for fixed plans, oracle and predictor, and the plans that the oracle chooses."""
    from matplotlib.figure import Figure

    oracles, metric = study["oracle"], study["metric"]
    figure = Figure(figsize=(5 * len(oracles), 6.5), layout="constrained", dpi=72)
    grid = figure.subplots(2, len(oracles), squeeze=False)
    for column, (family, oracle) in enumerate(oracles.items()):
        rows, predictor = study["curves"][family], study["sequence_predictor"][family]["curve"]
        axes, below = grid[:, column]
        axes.plot([row["k"] for row in rows], [row[metric] for row in rows], "o-", markersize=3, label="fixed plans")
        axes.plot(*zip(*oracle["frontier"], strict=True), "-", color="C2", label="oracle at each budget")
        label = "oracle, no worse than full"
        axes.plot(oracle["layers"], oracle["score"], "*", color="C2", markersize=13, label=label)
        costs = [row["cost"] for row in predictor]
        axes.plot(costs, [row["score"] for row in predictor], ".-", color="C1", label="predicted from the prompt")
        axes.plot(costs, [row["random"] for row in predictor], ":", color="0.4", label="the same choices, shuffled")
        axes.axhline(oracle["full_score"], color="0.8", zorder=0)
        axes.set_title(LABELS[family])
        axes.set_xlabel("mean layers per prompt")
        axes.set_ylabel(f"mean {metric}")
        axes.legend(fontsize=8)
        below.bar([row["k"] for row in rows], [100 * share for share in oracle["shares"]], color="C2")
        below.set_xlabel("layers of the cheapest plan no worse than the full model")
        below.set_ylabel("prompts (%)")
    return figure


def controllers_figure(study: dict[str, Any]) -> "Figure":
    """Share of tokens with enough layers against mean layers, for every kind of plan and target."""
    from matplotlib.figure import Figure

    panels = study["controllers"]
    figure = Figure(figsize=(5 * -(-len(panels) // 2), 7), layout="constrained", dpi=72)
    grid = figure.subplots(2, -(-len(panels) // 2), squeeze=False).T.flatten()
    for axes, panel in zip(grid, panels, strict=False):
        axes.plot(*zip(*panel["oracle"], strict=True), color="C2", label="token oracle")
        for number, (name, rows) in enumerate(panel["curves"].items()):
            axes.plot(
                [row["cost"] for row in rows], [row["score"] for row in rows], ".-", color=f"C{number}", label=name
            )
            axes.plot([row["cost"] for row in rows], [row["random"] for row in rows], ":", color=f"C{number}")
        axes.plot([], [], ":", color="0.4", label="the same allocation, shuffled")
        axes.set_title(f"{LABELS[panel['family']]}, {panel['target']}", fontsize=10)
        axes.set_xlabel("mean layers per token")
        axes.set_ylabel("tokens with enough layers")
        axes.legend(fontsize=7)
    return figure
