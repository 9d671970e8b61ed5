"""Any model in stages: what a captured graph could get wrong, each beside the model itself."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eenet
from eenet.backbones import StagedBackbone, Traced
from eenet.backbones.base import select
from eenet.backbones.proofs import guard
from eenet.backbones.traced.models import Wish, make_model
from eenet.costs import count_macs
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold

IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return self.act(y)


class Net(nn.Module):
    """A user's network: in-place operations, functional ones, dropout and batch norm."""

    def __init__(self, num_classes: int = 3, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        for block in self.blocks:
            x = self.drop(block(x))
        return self.fc(x.mean((2, 3)))


def traced(model: nn.Module, **options: Any) -> Traced:
    return Traced(model, input_shape=[1, 8, 8], **options)


@pytest.fixture(scope="module")
def net() -> Traced:
    torch.manual_seed(0)
    return traced(Net())


def test_stages_are_the_model_and_its_own_parameters(net: Traced) -> None:
    model = net.model
    net.eval()
    assert torch.equal(net(IMAGES), model(IMAGES))
    assert {id(parameter) for parameter in net.parameters()} == {id(parameter) for parameter in model.parameters()}
    assert net.stage_names == ["stem", "blocks.0", "blocks.1", "blocks.2"]
    assert net.find_stage("blocks.2") == net.find_stage("blocks.2.act") == 3


@torch.no_grad()
def test_an_exit_reads_what_the_block_returned(net: Traced) -> None:
    seen: list[Tensor] = []
    handle = net.model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    net.model.eval()(IMAGES)
    handle.remove()
    net.eval()
    state = net.embed(IMAGES)
    for stage in range(3):
        state = net.run_stage(stage, state)
    before = state[0].clone()
    net.run_stage(3, state)
    assert torch.equal(state[0], before)
    assert torch.equal(net.feature_map(2, state), seen[0])
    torch.testing.assert_close(net.features(2, state), seen[0].mean((2, 3)))


def test_training_is_the_models_own(net: Traced) -> None:
    staged, model = copy.deepcopy(net).train(), copy.deepcopy(net.model).train()
    torch.manual_seed(1)
    expected = model(IMAGES)
    torch.manual_seed(1)
    found = staged(IMAGES)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), staged.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for one, other in zip(model.buffers(), staged.model.buffers(), strict=True):
        assert torch.equal(one, other)


def test_batch_norm_trains_where_a_map_is_one_place() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(width, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU()) for width in (1, 6)]
    blocks[1][0] = nn.Conv2d(6, 6, 2)
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6, 3))
    staged, own = traced(model).train(), copy.deepcopy(model).train()
    assert torch.equal(staged(IMAGES), own(IMAGES))


@torch.no_grad()
def test_copies_have_their_own_weights_and_casts_are_followed(net: Traced) -> None:
    other, stored = copy.deepcopy(net.eval()), pickle.loads(pickle.dumps(net))
    other.model.fc.bias.add_(1)
    torch.testing.assert_close(other(IMAGES), net(IMAGES) + 1)
    assert torch.equal(stored(IMAGES), net(IMAGES))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(IMAGES), net(IMAGES))
    for dtype in (torch.float64, torch.bfloat16):
        cast, images = other.to(dtype), IMAGES.to(dtype)
        assert torch.equal(cast(images), cast.model(images))


@torch.no_grad()
def test_routing_is_gathering_and_macs_add_up() -> None:
    torch.manual_seed(0)
    network = eenet.attach(Net(), IMAGES, exits=["blocks.0", "blocks.1"], gate=ConfidenceGate).eval()
    logits, scores = network(IMAGES)
    policy = Threshold([float(column.median()) for column in scores.T])
    exits = policy.exits(logits.argmax(-1), scores)
    assert len(exits.unique()) > 1
    torch.testing.assert_close(network.route(IMAGES, policy).logits, logits[torch.arange(5), exits])
    assert network.costs.full == count_macs(network.backbone.model, IMAGES[:1])[0]
    stored = pickle.loads(pickle.dumps(network))
    again, before = stored.route(IMAGES, policy), network.route(IMAGES, policy)
    assert torch.equal(again.logits, before.logits)
    assert torch.equal(again.exits, before.exits)


def test_exits_by_cost_name_and_number(net: Traced) -> None:
    assert EarlyExitNetwork(net, exits={"fractions": [0.3, 0.7]}).exit_stages == [1, 2]
    assert EarlyExitNetwork(net, exits=["blocks.0"]).exit_stages == [1]
    assert traced(Net(), exits_at=[1]).stage_names == ["blocks.0", "blocks.2"]
    assert traced(Net(), exits_at={"fractions": [0.4]}).stage_names == ["blocks.0", "blocks.2"]


class Mixing(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        return self.fc(self.blocks[1](x - x.mean(0)).mean((2, 3)))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class AloneOtherwise(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if x.shape[0] == 1 else 2 * logits


class Several(Net):
    def forward(self, x: Tensor) -> Any:
        return {"one": super().forward(x)}


class ThroughViews(Net):
    """Writes through a view, which only the base shows."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, 0].add_(1)
        return self.fc(self.blocks[0](self.blocks[1](x)).mean((2, 3)))


class FromPython(Net):
    """Draws outside of torch, which a graph freezes."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        FromPython.count += self.training
        return super().forward(x) * (1 + FromPython.count)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Mixing(), "mixes the samples"),
        (Branching(), "control flow depends on the values"),
        (AloneOtherwise(), "other logits alone"),
        (Several(), "returns a dict"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_have_exits_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        traced(model)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("exits_at", "message"),
    [
        (["blocks.9"], "near it: blocks"),
        (["blocks.1.conv"], "inside a residual branch"),
        (["blocks.1", "blocks.0"], "in the order"),
        (["fc"], "only the model's own head"),
        ([7], "places 0 to"),
        ({"fractions": [1.5]}, "between 0 and 1"),
        ({"fractions": [0.3, 0.31]}, "meet at one place"),
    ],
)
def test_exits_that_are_nowhere_are_refused(exits_at: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        traced(Net(), exits_at=exits_at)
    assert len(str(error.value).splitlines()) == 1


@torch.no_grad()
def test_writes_through_views_are_kept() -> None:
    model = ThroughViews()
    found = traced(model).eval()
    assert torch.equal(found(IMAGES), model.eval()(IMAGES))


def test_randomness_outside_of_torch_is_refused_in_training() -> None:
    with pytest.raises(UserError, match="outside of torch"):
        traced(FromPython()).train()(IMAGES)


class Scaled(nn.Module):
    """Mixes places between two scales of the channels, as ResMLP does: products alone would disagree."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.widen = (nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for _ in range(2))
        self.scale, self.fc = nn.Parameter(torch.rand(3, 1, 1, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        for mix, widen, scale in zip(self.mix, self.widen, self.scale.unbind(), strict=True):
            x = x + mix((x * scale).transpose(1, 2)).transpose(1, 2)
            x = F.gelu(widen(x))
        return self.fc(x.mean(1))


def test_a_vector_of_weights_says_where_channels_are() -> None:
    with pytest.raises(UserError, match="give channels: first or last"):
        traced(Scaled(), exits_at=["widen.0"])
    assert traced(Scaled(), exits_at=["widen.0"], channels="last").feature_dims == [8, 8]


class Second(nn.Module):
    """The batch on the second axis, and a table that follows from lengths and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.fc = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(8, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1).transpose(0, 1)
        table = torch.cumsum(self.bias, 0).expand(-1, x.shape[1], -1)
        for layer in self.layers:
            x = F.gelu(layer(x)) + table
        return self.fc(x.mean(0))


@torch.no_grad()
def test_the_batch_may_lie_elsewhere_and_tables_are_made_again() -> None:
    model = Second()
    found = traced(model).eval()
    state = found.embed(IMAGES)
    for stage in range(found.num_stages):
        state = found.run_stage(stage, select(state, torch.tensor([4, 1])) if stage == 1 else state)
        assert [len(tensor) for tensor in state] == [5 if stage < 1 else 2] * len(state)
    torch.testing.assert_close(found.classify(state), model(IMAGES)[[4, 1]])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["beit", "deit"])
def test_types_with_a_vocabulary_or_several_classifiers_read_images(kind: str) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    arguments = {**small, "image_size": 16, "patch_size": 8}
    made = Traced(f"transformers:{kind}", 3, exits_at={"fractions": [0.5]}, arguments=arguments).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(made(images), made.model(images).logits)


@pytest.mark.parametrize("model", ["transformers:vit", "torch.nn:Flatten"])
def test_published_weights_that_nobody_has_are_refused(model: str) -> None:
    arguments = {"num_hidden_layers": 1} if "vit" in model else {}
    with pytest.raises(UserError, match="has no published weights here"):
        Traced(model, 3, input_shape=[3, 8, 8], pretrained=True, arguments=arguments)


class NoGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        with torch.autocast("cpu", enabled=False):
            x = self.blocks[0](x)
        return self.fc(self.blocks[1](x).mean((2, 3)))


def test_regions_without_gradient_or_autocast_are_part_of_the_graph() -> None:
    found = traced(NoGradient()).train()
    assert "blocks.0" in found.stage_names
    found(IMAGES).sum().backward()
    assert found.model.stem.weight.grad is None
    assert found.model.blocks[0].conv.weight.grad is not None


class Written(StagedBackbone):
    """A backbone by hand, right unless told otherwise."""

    def __init__(self, stages: int = 3, width: int = 6, mix: bool = False, own: bool = True) -> None:
        super().__init__()
        net = Net()
        self.parts = nn.ModuleList([net.stem, *net.blocks, net.fc])
        if own:
            self.model = net
        self.num_stages, self.num_classes, self.feature_dims, self.mix = stages, 3, [width] * stages, mix
        self.input_shape = (1, 8, 8)

    def embed(self, inputs: Tensor) -> Tensor:
        return F.relu(self.parts[0](inputs))

    def run_stage(self, i: int, state: Tensor) -> Tensor:
        return self.parts[1 + i](state - state.mean(0) if self.mix and i == 1 else state)

    def features(self, i: int, state: Tensor) -> Tensor:
        return state.mean((2, 3))

    def classify(self, state: Tensor) -> Tensor:
        return self.parts[-1](state.mean((2, 3)))

    def description(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 2}, "2 stages are not the model"),
        ({"stages": 2, "own": False}, "no stage reads parts.3"),
        ({"width": 5}, r"features after stage 0 are \(4, 6\), where feature_dims says 5"),
        ({"mix": True, "own": False}, "stage 1 mixes the samples"),
        ({"stages": 5}, r"run_stage\(4\) cannot be run|run_stage\(3\) cannot be run"),
    ],
)
def test_a_backbone_by_hand_is_proved(options: dict[str, Any], message: str) -> None:
    guard(Written())
    with pytest.raises(UserError, match=message):
        EarlyExitNetwork(Written(**options), exits=[0])


def test_a_number_of_exits_is_at_equal_distances_and_none_is_refused() -> None:
    network = eenet.attach(Net(), IMAGES, exits=1)
    given = eenet.attach(Net(), IMAGES, exits={"fractions": [0.5]})
    assert network.exit_stages == given.exit_stages
    assert network.costs.stages == given.costs.stages
    with pytest.raises(UserError, match="must be at least 1"):
        eenet.attach(Net(), IMAGES, exits=0)


def test_auxiliary_classifiers_make_way_for_exits() -> None:
    wish = Wish("googlenet", 5, None, False, {"init_weights": False}, 16)
    model = make_model("torchvision:googlenet", wish).model.train()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert not [name for name, _ in model.named_parameters() if name.startswith("aux")]
