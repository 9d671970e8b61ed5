"""Where stages end in models that keep several tensors."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from eenet.backbones import Traced
from eenet.backbones.proofs import varied

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Joined(nn.Module):
    """Every convolution reads all maps before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(max(1, 4 * i), 4, 3, padding=1) for i in range(6))
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for conv in self.convs:
            maps.append(conv(torch.cat(maps, 1) if maps else x))
        return self.fc(torch.cat(maps, 1).mean((2, 3)))


@torch.no_grad()
def test_an_exit_by_cost_is_on_as_many_tensors_as_it_needs_to_be_near() -> None:
    net = Traced(Joined(), input_shape=[1, 8, 8], exits_at={"fractions": [0.2, 0.4]}).eval()
    states = [net.embed(IMAGES)]
    for stage in range(2):
        states.append(net.run_stage(stage, states[-1]))
    assert [len(state) for state in states] == [1, 3, 4]
    assert net.stage_names[:2] == ["convs.2", "convs.3"]
    assert torch.equal(net(IMAGES), net.model(IMAGES))


class Gathered(nn.Module):
    """Logits of the means of all blocks."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, *[6] * 6]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU()) for before, after in pairwise(widths)
        )
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for block in self.blocks[::2]:
            x = block(x)
        for block in self.blocks[1::2]:
            x = block(x)
            maps.append(x.mean((2, 3)))
        return torch.stack([head(values) for head, values in zip(self.heads, maps, strict=False)]).sum(0)


def test_the_last_stage_ends_late_although_several_tensors_are_needed_there() -> None:
    net = Traced(Gathered(), input_shape=[1, 8, 8])
    assert net.stage_names == [f"blocks.{block}" for block in (0, 2, 4, 1, 3, 5)]
    assert [len(point.shapes) for point in net.plan.points] == [1, 1, 1, 1, 2, 3]


def test_stages_of_a_text_encoder_are_its_layers() -> None:
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20, "pad_token_id": 1}
    net = Traced("transformers:bert", 3, arguments={**small, "num_hidden_layers": 5}, example_tokens=8)
    assert net.stage_names == [f"bert.encoder.layer.{layer}" for layer in range(5)]


def test_examples_of_texts_have_token_types_that_there_are() -> None:
    """BERT tells two texts apart: an embedding has two rows."""
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, **small))
    ids = torch.randint(3, 20, (1, 7))
    one = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}
    for net in (Traced(model, example=one), Traced("transformers:bert", 2, arguments={**small, "vocab_size": 20})):
        example = varied(net.example_input())
        assert example["token_type_ids"].max() <= 1
        assert torch.allclose(net.eval()(example), net.model.eval()(**example).logits, atol=1e-6)


class Shuffled(nn.Module):
    """Half of the channels pass each block, and channels are shuffled between blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.stem, self.fc = nn.Conv2d(1, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.convs:
            kept, given = x.chunk(2, 1)
            x = torch.stack([kept, conv(given)], 2).flatten(1, 2)
        return self.fc(x.mean((2, 3)))


def test_channels_are_found_where_a_tensor_is_split() -> None:
    assert Traced(Shuffled(), input_shape=[1, 8, 8], exits_at=["convs.1"]).feature_dims[0] == 6
