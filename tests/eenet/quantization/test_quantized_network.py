"""Networks over paths: BitOPs by hand, features with shared beginnings, routing against the gathered reference."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eenet.backbones import StagedBackbone
from eenet.errors import UserError
from eenet.features import feature_key
from eenet.inference_modules import ConvPoolHead
from eenet.network import EarlyExitNetwork
from eenet.policies import PredictedErrors, Threshold
from eenet.policies.predicted_errors import follow
from eenet.profile import CostProfile
from eenet.quantization import QuantizedNetwork
from eenet.tree import Tree, full_paths
from tests._dummies import make_resnet, make_vit


def make_network(backbone: StagedBackbone | None = None, **arguments: Any) -> QuantizedNetwork:
    """A calibrated network in float64, where batches of other sizes are rounded too little to cross a grid's step."""
    arguments = {"exits": [0, 2], "widths": [32, 8, 4], **arguments}
    network = QuantizedNetwork(backbone or make_vit(), **arguments).eval()
    _ = network.costs
    network.double().calibrate([inputs(network, 32)])
    return network


def inputs(network: QuantizedNetwork, batch: int) -> Tensor:
    weight = next(network.parameters())
    return torch.randn(batch, *network.backbone.input_shape or (), dtype=weight.dtype)


def sharpen(network: QuantizedNetwork, rows: Tensor) -> None:
    """Random predictors that send samples everywhere."""
    with torch.no_grad():
        extracted = network.extract(rows)
        for predictor, known in zip(
            network.predictors, network.known(extracted, network.exit_logits(extracted)), strict=True
        ):
            predictor.fit_description(known)  # type: ignore[operator]
            for parameter in predictor.layers.parameters():  # type: ignore[union-attr]
                parameter.mul_(8)


@pytest.mark.parametrize(
    ("first", "tradeoff"),
    [
        (32, 2.0),
        (4, 0.3),
        *(pytest.param(4, tradeoff, marks=pytest.mark.slow) for tradeoff in (0.0, 2.0, 1e3)),
        *(pytest.param(32, tradeoff, marks=pytest.mark.slow) for tradeoff in (0.0, 0.3, 1e3)),
    ],
)
@torch.no_grad()
def test_routed_paths_equal_the_gathered_reference(first: int, tradeoff: float, backbone: StagedBackbone) -> None:
    network = make_network(backbone)
    rows = inputs(network, 96)
    sharpen(network, rows)
    logits, scores = network(rows)
    policy = network.policy(first, tradeoff)
    nodes = policy.exits(logits.argmax(-1), scores)
    routed = network.route(rows, policy)
    assert routed.nodes.tolist() == nodes.tolist()
    torch.testing.assert_close(routed.logits, logits[torch.arange(96), nodes])
    assert routed.exits.tolist() == [len(network.tree.nodes[node]) - 1 for node in nodes]
    columns = network.costs.columns
    assert routed.bitops is not None
    assert routed.bitops.tolist() == [columns["bitops"].routed[node] for node in nodes]
    assert routed.macs.tolist() == [columns["macs"].routed[node] for node in nodes]
    if tradeoff == 0:
        assert len(nodes.unique()) >= 5
        assert len(routed.exits.unique()) >= 2
    if tradeoff == 1e3:
        assert (routed.exits == 0).all()


@torch.no_grad()
def test_samples_that_go_on_at_one_width_run_together() -> None:
    network = make_network()
    rows = inputs(network, 96)
    sharpen(network, rows)
    seen: list[tuple[int, int, int]] = []
    run_segment = network.run_segment

    def counting(segment: int, width: int, state: Tensor) -> Tensor:
        seen.append((segment, width, len(state)))
        return run_segment(segment, width, state)

    network.run_segment = counting  # type: ignore[method-assign]
    nodes = network.route(rows, network.policy(8, 0.0)).nodes.tolist()
    paths = [network.tree.nodes[node] for node in nodes]
    expected = {
        (segment, width): sum(path[segment : segment + 1] == (width,) for path in paths)
        for segment, width in product(range(3), network.widths)
    }
    assert {(segment, width): count for segment, width, count in seen} == {k: n for k, n in expected.items() if n}
    assert len(seen) == len({(segment, width) for segment, width, _ in seen})


@torch.no_grad()
def test_every_node_is_its_path_run_alone() -> None:
    network = make_network()
    rows = inputs(network, 4)
    logits = network(rows).logits
    assert logits.shape == (4, 3 + 9 + 27, 10)
    for node in (0, 7, 20, 38):
        path = network.tree.nodes[node]
        state = network.embed(path[0], rows)
        for segment, width in enumerate(path):
            state = network.run_segment(segment, width, state)
        if len(path) == 3:
            alone = network.classify(path[-1], state)
        else:
            place = network.tree.places.index((len(path) - 1, path[-1]))
            alone, _ = network.logits_at(place, network.read(len(path) - 1, state), ())
        torch.testing.assert_close(logits[:, node], alone)
    torch.testing.assert_close(logits[:, network.tree.index[(32, 32, 32)]], network.backbone(rows))


@torch.no_grad()
def test_segments_are_run_once_per_beginning() -> None:
    network = make_network()
    calls: list[int] = []
    run_segment = network.run_segment
    network.run_segment = lambda segment, *rest: (calls.append(segment), run_segment(segment, *rest))[1]  # type: ignore
    network.extract(inputs(network, 2))
    assert [calls.count(segment) for segment in range(3)] == [3, 9, 27]


def test_bitops_by_hand() -> None:
    network = QuantizedNetwork(make_vit(), [0, 2], widths=[32, 8, 4])
    tokens, dim, classes = 5, 16, 10
    embed, linear, attention = 4 * 16 * dim, tokens * 12 * dim**2, 2 * tokens**2 * dim
    head = dim * classes
    own = 4 + 5 + classes + dim  # statistics, the best log-probabilities and all, features
    predictors = [  # two layers; 13 nodes can be reached from the first exit, 4 from the second, which reads both
        32 * (inputs + options) for inputs, options in ((own, 13), (2 * own + 1, 4))
    ]
    path = (8, 4, 32)
    outer = embed + 2 * head + sum(predictors)  # 8 bits beside segments at 8 and at 4
    expected = 64 * (linear + attention + outer) + 2 * (16 * linear + 64 * attention)
    expected += 1024 * (linear + attention + head)
    macs_of, bitops_of = (network.costs.columns[unit] for unit in ("macs", "bitops"))
    assert bitops_of.routed[network.tree.index[path]] == expected
    macs = embed + 4 * (linear + attention) + 3 * head + sum(predictors)
    assert macs_of.routed[network.tree.index[path]] == macs
    first = 64 * (embed + attention + head + predictors[0] + linear)
    assert bitops_of.routed[network.tree.index[(8,)]] == first
    assert bitops_of.static[network.tree.index[(8,)]] == first - 64 * predictors[0]
    assert bitops_of.full == 1024 * macs_of.full == 1024 * (embed + 4 * (linear + attention) + head)
    assert bitops_of.static[network.tree.index[(32, 32, 32)]] == bitops_of.full
    table = {(row["segment"], row["width"]): row for row in network.quantization["bitops"]}
    assert table[1, 8]["bitops"] == 2 * 64 * (linear + attention)
    assert table[1, 8]["cumulative"] == 64 * (embed + 3 * (linear + attention))
    parts = {(row["part"], row["width"]): row for row in network.quantization["parts"]}
    assert parts["attention's products", 4] == {
        "width": 4,
        "part": "attention's products",
        "macs": 4 * attention,
        "weight_bits": 8,
        "activation_bits": 8,
        "bitops": 64 * 4 * attention,
    }
    for width in (32, 8, 4):
        stages_and_outer = sum(row["bitops"] for (name, own), row in parts.items() if own == width)
        static = bitops_of.static[network.tree.index[(width,) * 3]]
        bits = 1024 if width == 32 else 64
        assert stages_and_outer == static + 2 * bits * head  # the static network has no early heads


def test_the_rest_and_the_edges_have_widths_of_their_own() -> None:
    network = QuantizedNetwork(make_vit(), [0, 2], widths=[4, 3], rest_width=4, edge_width=8)
    tokens, dim, classes = 5, 16, 10
    rest = 4 * 16 * dim + 4 * 2 * tokens**2 * dim + dim * classes
    first, last, unit = 3, 4, tokens * dim**2  # of a block's 12 shares: queries, keys and values; the last layer
    layers = 64 * unit * (first + last) + 12 * unit * (4 * 12 - first - last)
    assert network.costs.columns["bitops"].static[network.tree.index[(3, 3, 3)]] == 16 * rest + layers
    assert network.quantization["wider_layers"] == {"model.blocks.0.attn.qkv": 8, "model.blocks.3.mlp.fc2": 8}


def test_a_path_that_is_static_at_32_bits_costs_the_macs_times_1024() -> None:
    costs = CostProfile(3, (11, 22), 5, (4,), (7,), (0,), stage_bitops=(1024 * 11, 1024 * 22)).columns["bitops"]
    assert costs.static[-1] == costs.full == 1024 * (3 + 33 + 5)
    assert costs.routed[-1] == costs.full + 1024 * (4 + 7)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.sampled_from([32, 16, 8, 6, 4]), min_size=1, max_size=4, unique=True),
    segments=st.integers(1, 4),
    most=st.sampled_from([30, 10_000]),
)
def test_paths_are_all_or_those_that_never_rise(widths: list[int], segments: int, most: int) -> None:
    widths = sorted(widths, reverse=True)
    everything = list(product(widths, repeat=segments))
    falling = [path for path in everything if list(path) == sorted(path, reverse=True)]
    if len(everything) > most and len(falling) > most:
        with pytest.raises(UserError, match="max_paths"):
            full_paths(widths, segments, most)
        return
    family, paths = full_paths(widths, segments, most)
    assert (family, set(paths)) == (
        ("all", set(everything)) if len(everything) <= most else ("non_increasing", set(falling))
    )
    tree = Tree.of(paths)
    assert set(tree.nodes) == {path[:n] for path in paths for n in range(1, segments + 1)}
    for node, path in enumerate(tree.nodes):
        reachable = tree.reachable(node)
        assert reachable[0] == node
        assert {tree.nodes[other][: len(path)] for other in reachable} == {path}
        assert set(tree.steps(node)) == {node, *tree.children(node)}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), tradeoff=st.floats(0, 10), more=st.floats(0, 10))
def test_a_higher_price_never_chooses_a_dearer_option(seed: int, tradeoff: float, more: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    errors, costs = torch.rand(20, 1, 6, generator=generator), torch.rand(6, generator=generator)
    nodes = [(8,), *((8, width) for width in (16, 8, 6, 4, 2))]
    before, after = (
        PredictedErrors(8, price, nodes, costs.tolist()).exits(errors[:, 0], errors)
        for price in (tradeoff, tradeoff + more)
    )
    assert (costs[after] <= costs[before] + 1e-6).all()
    risk = errors[:, 0] + tradeoff * costs
    torch.testing.assert_close(risk.gather(1, before.unsqueeze(1)).squeeze(1), risk.amin(1))


def test_following_moves_stops_where_a_sample_stays() -> None:
    tree = Tree.of(list(product((8, 4), repeat=3)))
    moves = torch.arange(tree.num_early).repeat(3, 1)
    moves[1, 0] = tree.index[(8, 4)]
    moves[2, 0], moves[2, tree.index[(8, 4)]] = tree.index[(8, 4)], tree.index[(8, 4, 8)]
    ends = [tree.nodes[node] for node in follow(tree, moves, 0)]
    assert ends == [(8,), (8, 4), (8, 4, 8)]


@torch.no_grad()
def test_the_native_network_agrees_with_the_simulated_one() -> None:
    torch.manual_seed(1)
    for backbone, edge_width in ((make_vit(embed_dim=32), None), (make_resnet(), None), (make_resnet(), 16)):
        network = QuantizedNetwork(backbone, [0, 2], widths=[32, 8, 6], edge_width=edge_width).eval()
        rows = inputs(network, 32)
        network.calibrate([rows])
        simulated = network(rows).logits
        network.native = True
        native = network(rows).logits
        # An input in the middle of two codes may be rounded either way, which moves an output by a step of its grid.
        difference = (native - simulated).abs() / simulated.std()
        assert difference.mean() < 2e-3
        assert difference.max() < 0.05
        assert network.memory()["codes"] == (2 if edge_width is None else 4) * sum(
            network.backbone.get_submodule(name).weight.numel()  # type: ignore[union-attr, operator]
            for name in network.layer_names
        )


@pytest.mark.parametrize("edge_width", [None, 8])
def test_every_part_is_billed_at_the_bits_that_it_is_told_with(edge_width: int | None) -> None:
    network = QuantizedNetwork(make_resnet(), [0, 2], widths=[32, 4], edge_width=edge_width)
    rows = network.part_rows({})
    assert all(row["bitops"] == row["macs"] * row["weight_bits"] * row["activation_bits"] for row in rows)
    for width in network.widths:
        own = [row["bitops"] for row in rows if row["width"] == width and not row["part"].startswith("head")]
        assert sum(own) == sum(network.stage_bitops_at(width)) + sum(network.outer_bitops_at(width))
    edges = [row["macs"] for row in rows if row["part"] == "first and last layer"]
    assert bool(edges) == (edge_width is not None)


def test_a_batch_of_nobody_is_routed_nowhere() -> None:
    network = QuantizedNetwork(make_vit(), [0, 2], widths=[8, 4]).eval()
    network.calibrate([inputs(network, 8)])
    routed = network.route(inputs(network, 8)[:0], network.policy(8, 0.1))
    assert (routed.logits.shape[0], routed.exits.tolist()) == (0, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": 8}, r"network\.widths = 8: must be different widths"),
        ({"widths": [8.0]}, r"network\.widths = \[8\.0\]: must be different"),
        ({"edge_width": 32}, r"network\.edge_width = 32: must be one of 16, 8, 6, 4, 3, 2 bits"),
        ({"edge_width": 5}, r"network\.edge_width = 5: must be one of"),
    ],
)
def test_widths_without_a_grid_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantizedNetwork(make_vit(), [0], **settings)


@torch.no_grad()
def test_loading_a_checkpoint_brings_its_ranges_into_use() -> None:
    network = QuantizedNetwork(make_vit(), [0], widths=[4]).eval()
    rows = inputs(network, 8)
    network.calibrate([rows])
    other = QuantizedNetwork(make_vit(), [0], widths=[4]).eval()
    other.calibrate([100 * rows])
    _ = other(rows)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(rows).logits, network(rows).logits)


@pytest.mark.slow
def test_the_key_of_stored_features_knows_paths_and_ranges() -> None:
    backbone, rows = make_vit(), torch.randn(8, 1, 8, 8)

    def make(scale: float = 1.0, **arguments: Any) -> QuantizedNetwork:
        network = QuantizedNetwork(backbone, **{"exits": [0, 1, 2], "widths": [8, 4], "max_paths": 16, **arguments})
        network.calibrate([scale * rows])
        return network

    key = feature_key(make(), "data", "float32")
    assert feature_key(make(), "data", "float32") == key
    assert feature_key(make(shared_heads=True), "data", "float32") == key
    other_method, integers = make(), make()
    other_method.range_methods[0] ^= 1
    integers.native = True
    others = [
        make(widths=[8, 6]),
        make(max_paths=8),
        make(exits=[0, 1]),
        make(2.0),
        make(rest_width=4),
        other_method,
        integers,
    ]
    keys = [feature_key(network, "data", "float32") for network in others]
    keys.append(feature_key(EarlyExitNetwork(backbone, [0, 1, 2]), "data", "float32"))
    assert len({key, *keys}) == 9


@torch.no_grad()
def test_the_nearer_ranges_are_chosen_for_each_width() -> None:
    network = QuantizedNetwork(make_vit(), [0], widths=[32, 8, 3]).eval()
    rows, others = inputs(network, 32), inputs(network, 16)
    wanted = network.backbone(others).log_softmax(-1)
    tried = []
    network._try = lambda *given: (tried.append(QuantizedNetwork._try(network, *given)), tried[-1])[1]  # type: ignore
    network.calibrate([rows], [others])
    assert [method for _, method, _ in tried] == [0, 1] * 2
    for number, width in ((1, 8), (2, 3)):
        found = network.twin(width)(others).log_softmax(-1)
        distance = (wanted.exp() * (wanted - found)).sum().item()
        assert distance == pytest.approx(min(tried[2 * number - 2][0], tried[2 * number - 1][0]), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("widths", [[3], [8, 3]])
def test_outputs_of_layers_have_the_means_of_the_float_network(widths: list[int]) -> None:
    """With several widths those of each stage, on a state of the float network."""
    for backbone in (make_vit(), make_resnet()):
        network = QuantizedNetwork(backbone, [0], widths=widths).eval()
        rows = inputs(network, 64)
        network.calibrate([rows])
        twin = network.twin(3)

        def staged(rows: Tensor, twin: StagedBackbone = twin, backbone: StagedBackbone = backbone) -> None:
            state = backbone.embed(rows)
            for stage in range(backbone.num_stages):
                twin.run_stage(stage, state)
                state = backbone.run_stage(stage, state)

        wanted = mean_outputs(backbone.eval(), backbone, network.layer_names, rows)
        run = twin if len(widths) == 1 else staged
        found = mean_outputs(run, twin.backbone, network.layer_names, rows)  # type: ignore[arg-type]
        for name in network.layer_names:
            torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-3)
        assert network.shifts_3.abs().max() > 1e-3


def mean_outputs(
    run: Callable[[Tensor], Any], whole: StagedBackbone, names: list[str], rows: Tensor
) -> dict[str, Tensor]:
    """Of every channel of some layers."""
    means: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        means[name] = output.mean((0, 2, 3)) if output.ndim == 4 else output.flatten(0, -2).mean(0)

    hooks = [
        whole.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name in names
    ]
    run(rows)
    for hook in hooks:
        hook.remove()
    return means


@torch.no_grad()
def test_heads_are_per_width_or_shared_and_may_read_maps() -> None:
    own, shared = (QuantizedNetwork(make_vit(), [0], widths=[8, 4], shared_heads=flag) for flag in (False, True))
    assert [len(network.inference_modules[0].heads) for network in (own, shared)] == [2, 1]  # type: ignore[arg-type, union-attr]
    maps = make_network(make_resnet(), inference_module=ConvPoolHead)
    rows = inputs(maps, 16)
    sharpen(maps, rows)
    logits, scores = maps(rows)
    policy = maps.policy(8, 0.1)
    nodes = policy.exits(logits.argmax(-1), scores)
    torch.testing.assert_close(maps.route(rows, policy).logits, logits[torch.arange(16), nodes])


def test_a_first_width_that_is_not_there_is_refused() -> None:
    network = QuantizedNetwork(make_vit(), [0], widths=[8])
    with pytest.raises(UserError, match=r"policy\.first_width = 4"):
        network.policy(4, 0.0)


@torch.no_grad()
def test_texts_of_different_lengths_are_routed() -> None:
    from tests.eenet.quantization.test_quantized_layers import make_bert

    network = QuantizedNetwork(make_bert(), [0], widths=[32, 8]).eval()
    _ = network.costs
    network.double()
    mask = (torch.arange(8) < torch.randint(2, 9, (24, 1))).long()
    rows = {"input_ids": torch.randint(1, 50, (24, 8)) * mask, "attention_mask": mask}
    network.calibrate([rows])
    sharpen(network, rows)  # type: ignore[arg-type]
    logits, scores = network(rows)
    policy = network.policy(8, 0.0)
    nodes = policy.exits(logits.argmax(-1), scores)
    routed = network.route(rows, policy)
    assert routed.nodes.tolist() == nodes.tolist()
    torch.testing.assert_close(routed.logits, logits[torch.arange(24), nodes])


@pytest.mark.parametrize("path", [(32, 8, 4), (4, 4, 32)])
@torch.no_grad()
def test_along_a_path_it_is_a_plain_network(path: tuple[int, ...]) -> None:
    network = make_network()
    rows = inputs(network, 48)
    chain, nodes = network.along(path), network.tree.along(path)
    outputs = chain(rows)
    torch.testing.assert_close(outputs.logits, network(rows).logits[:, nodes])
    policy = Threshold(outputs.scores.median(0).values.tolist())
    exits = policy.exits(outputs.logits.argmax(-1), outputs.scores)
    routed = chain.route(rows, policy)
    assert routed.exits.tolist() == exits.tolist()
    assert len(exits.unique()) == 3
    torch.testing.assert_close(routed.logits, outputs.logits[torch.arange(48), exits])
    passed = [chain.costs.columns[unit].static[-1] for unit in ("macs", "bitops")]
    assert passed == [network.costs.columns[unit].static[nodes[-1]] for unit in ("macs", "bitops")]


def test_a_policy_for_another_tree_is_refused() -> None:
    network, other = (QuantizedNetwork(make_vit(), [0, 2], widths=widths) for widths in ([32, 8], [32, 4]))
    with pytest.raises(UserError, match=r"policy = 'Threshold'.*take `network\.along\(path\)`"):
        network.check(Threshold([0.5, 0.5]))
    with pytest.raises(UserError, match=r"policy = 'PredictedErrors'.*made for other paths.* 32-32-32, 32-32-8"):
        network.check(other.policy(32, 0.0))
    with pytest.raises(UserError, match=r"policy = 'PredictedErrors'.*made for other paths"):
        EarlyExitNetwork(make_vit(), [0, 2]).check(network.policy(32, 0.0))
    with pytest.raises(UserError, match=r"policy = 'PredictedErrors'.*made for other paths"):
        network.route(torch.zeros(2, 1, 8, 8), other.policy(32, 0.0))
    with pytest.raises(UserError, match=r"policy\.thresholds"):
        network.along((8, 8, 8)).route(torch.zeros(2, 1, 8, 8), Threshold([0.5]))
    with pytest.raises(UserError, match=r"path = '4-4-4': the network has 32-32-32, "):
        network.along((4, 4, 4))
    network.check(network.policy(8, 0.1))
