import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.features import (
    FeatureOptions,
    FeatureStore,
    FeatureTable,
    Source,
    disk_table,
    extraction,
    feature_key,
    feature_options,
    mapping,
    memory_table,
)
from eenet.inference_modules import ConvPoolHead
from eenet.network import EarlyExitNetwork, ExitFeatures
from tests._dummies import make_network, make_resnet

SAMPLES, BATCH = 50, 7


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "SHARD_BYTES", 2048)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(SAMPLES, 1, 8, 8)


def make_source(
    network: EarlyExitNetwork, inputs: Tensor, loaded: list[range] | None = None, pause: float = 0
) -> Source:
    labels = torch.arange(len(inputs)) % 10

    def load(rows: range) -> Iterator[tuple[Tensor, Tensor]]:
        if loaded is not None:
            loaded.append(rows)
        for start in range(rows.start, rows.stop, BATCH):
            time.sleep(pause)
            batch = slice(start, min(start + BATCH, rows.stop))
            yield inputs[batch], labels[batch]

    return Source("noise", network, load, labels, 100 + torch.arange(len(inputs)))


def on_disk(source: Source, folder: Path, dtype: str = "float32") -> FeatureTable:
    return disk_table(source, source.layout(dtype), folder)


def check(table: FeatureTable, network: EarlyExitNetwork, inputs: Tensor, dtype: torch.dtype = torch.float32) -> None:
    with torch.no_grad():
        expected = network.eval().extract(inputs)
    rows = torch.randperm(len(inputs))
    extracted, labels = table[rows]
    assert len(table) == len(inputs)
    assert labels.tolist() == (rows % 10).tolist()
    assert table.ids[rows].tolist() == (rows + 100).tolist()
    torch.testing.assert_close(extracted.final_logits, expected.final_logits[rows], atol=1e-5, rtol=1e-5)
    assert len(extracted.features) == len(expected.features)
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for stored, features in zip(extracted.features, expected.features, strict=True):
        assert stored.dtype == torch.float32
        assert torch.equal(stored, stored.to(dtype).float())
        torch.testing.assert_close(stored, features[rows], atol=max(tolerance, 1e-5), rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_both_stores_give_what_the_backbone_gives(dtype: str, inputs: Tensor, tmp_path: Path) -> None:
    network = make_network()
    source = make_source(network, inputs)
    for table in (memory_table(source, source.layout(dtype)), on_disk(source, tmp_path / "key", dtype)):
        check(table, network, inputs, getattr(torch, dtype))
    assert len(FeatureStore.open(tmp_path / "key").shards) > 2


def test_heads_on_feature_maps_get_maps(inputs: Tensor, tmp_path: Path) -> None:
    network = EarlyExitNetwork(make_resnet(), inference_module=ConvPoolHead)
    table = on_disk(make_source(network, inputs), tmp_path / "key")
    maps = table[range(2)][0].features
    assert all(features.ndim == 4 for features in maps)
    assert sum(path.stat().st_size for path in tmp_path.glob("key/*.bin")) == SAMPLES * (
        4 * sum(features[0].numel() for features in maps) + 4 * 10 + 16
    )
    check(table, network, inputs)


def test_extraction_leaves_modes_gradients_and_random_state(inputs: Tensor) -> None:
    network = make_network()
    network.backbone.train()
    next(network.backbone.children()).eval()
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    source = make_source(network, inputs)
    table = memory_table(source, source.layout("float32"))
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not table[[0]][0].final_logits.requires_grad


def test_samples_of_another_shape_are_refused(inputs: Tensor) -> None:
    network = make_network()
    source = make_source(network, inputs)
    layout = source.layout("float32")
    monkey = SimpleNamespace(calls=0)

    def extract(batch: Tensor) -> ExitFeatures:
        monkey.calls += 1
        width = 16 if monkey.calls < 3 else 17
        return ExitFeatures([torch.zeros(len(batch), width)] * 3, torch.zeros(len(batch), 10))

    network.extract = extract  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"model\.features = .*17.*differ from the first sample's .*16"):
        memory_table(source, layout)


def test_an_interrupted_extraction_goes_on_with_the_shards_that_are_missing(inputs: Tensor, tmp_path: Path) -> None:
    network, loaded = make_network(), []
    source = make_source(network, inputs, loaded)
    layout = source.layout("float32")
    ranges = extraction.shards(SAMPLES, layout.sample_bytes)
    whole, network_extract = 2, network.extract

    def fail(batch: Tensor) -> ExitFeatures:
        if loaded[-1] == ranges[whole]:
            raise KeyboardInterrupt
        return network_extract(batch)

    network.extract = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        disk_table(source, layout, tmp_path / "key")
    store = FeatureStore.open(tmp_path / "key")
    assert [store.state(number) for number in range(len(ranges))] == ["whole"] * whole + ["missing"] * (
        len(ranges) - whole
    )
    network.extract = network_extract  # type: ignore[method-assign]
    loaded.clear()
    check(disk_table(source, layout, tmp_path / "key"), network, inputs)
    assert loaded == ranges[whole:]
    loaded.clear()
    disk_table(source, layout, tmp_path / "key")
    assert loaded == []


@pytest.mark.parametrize("name", ["exit_0", "exit_2", "final_logits", "labels", "ids"])
def test_a_flipped_byte_is_found_named_and_repaired(
    name: str, inputs: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    network, loaded = make_network(), []
    source = make_source(network, inputs, loaded)
    on_disk(source, tmp_path / "key")
    path = tmp_path / "key" / f"{name}.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    loaded.clear()
    layout = source.layout("float32")
    loaded.clear()
    table = disk_table(source, layout, tmp_path / "key")
    ranges = extraction.shards(SAMPLES, layout.sample_bytes)
    assert len(loaded) == 1
    assert SAMPLES // 2 in loaded[0]
    assert f"shard {ranges.index(loaded[0])} of {tmp_path / 'key'} (noise) is damaged" in capsys.readouterr().out
    check(table, network, inputs)


@pytest.mark.parametrize("damage", ["truncated", "lost", "marker", "manifest", "layout"])
def test_other_damage_is_repaired(damage: str, inputs: Tensor, tmp_path: Path) -> None:
    network = make_network()
    source, folder = make_source(network, inputs), tmp_path / "key"
    on_disk(source, folder)
    if damage == "truncated":
        os.truncate(folder / "exit_1.bin", 100)
    elif damage == "lost":
        (folder / "labels.bin").unlink()
    elif damage == "marker":
        (folder / "shards" / "000001.json").write_text("{")
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{}")
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "samples": 51}))
    check(on_disk(source, folder), network, inputs)


def test_a_small_disk_is_refused_before_anything_runs(
    inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[range] = []
    source = make_source(make_network(), inputs, loaded)
    layout = source.layout("float32")
    loaded.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SAMPLES * layout.sample_bytes - 1))
    with pytest.raises(UserError, match=r"model\.features\.folder.*kB are free.*float16"):
        disk_table(source, layout, tmp_path / "key")
    assert (loaded, list(tmp_path.iterdir())) == ([], [])
    monkeypatch.undo()
    monkeypatch.setattr(extraction, "SHARD_BYTES", 2048)
    disk_table(source, layout, tmp_path / "key")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    disk_table(source, layout, tmp_path / "key")


def test_a_small_memory_is_refused_before_anything_runs(inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[range] = []
    source = make_source(make_network(), inputs, loaded)
    layout = source.layout("float32")
    loaded.clear()
    available = SimpleNamespace(available=SAMPLES * layout.sample_bytes - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    with pytest.raises(UserError, match=r"kB are free; use `disk`"):
        memory_table(source, layout)
    assert loaded == []
    available.available += 1
    memory_table(source, layout)


def test_the_key_knows_weights_exits_reads_data_and_dtype() -> None:
    network = make_network()
    key = feature_key(network, "data", "float32")
    changed = make_network()
    changed.backbone.load_state_dict(network.backbone.state_dict())
    assert feature_key(changed, "data", "float32") == key
    fewer = EarlyExitNetwork(network.backbone, exits=[1])
    keys = {key, feature_key(network, "other", "float32"), feature_key(network, "data", "float16")}
    keys.add(feature_key(fewer, "data", "float32"))
    next(changed.backbone.parameters()).data.view(-1)[0] += 1e-6
    keys.add(feature_key(changed, "data", "float32"))
    resnet = make_resnet()
    keys |= {feature_key(EarlyExitNetwork(resnet), "data", "float32")}
    keys |= {feature_key(EarlyExitNetwork(resnet, inference_module=ConvPoolHead), "data", "float32")}
    assert len(keys) == 7


def extract_slowly(network: EarlyExitNetwork, inputs: Tensor, folder: Path) -> None:
    torch.set_num_threads(1)
    on_disk(make_source(network, inputs, pause=0.02), folder)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_right_features(inputs: Tensor, tmp_path: Path) -> None:
    network, moments = make_network(), random.Random(0)
    context, folder = multiprocessing.get_context("fork"), tmp_path / "key"
    partial_stores = kills = 0
    while kills < 20:
        process = context.Process(target=extract_slowly, args=(network, inputs, folder))
        process.start()
        process.join(moments.uniform(0.02, 0.4))
        process.kill()
        process.join()
        if process.exitcode == 0:
            loaded: list[range] = []
            check(on_disk(make_source(network, inputs, loaded), folder), network, inputs)
            assert loaded == [range(1)]
            shutil.rmtree(folder)
        else:
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            partial_stores += bool(list(folder.glob("shards/*.json")))
    assert partial_stores
    check(on_disk(make_source(network, inputs), folder), network, inputs)


def test_mapped_pages_of_a_large_store_are_given_back(
    inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network()
    table = on_disk(make_source(network, inputs), tmp_path / "key")
    advised: list[int] = []
    maps = table._maps  # type: ignore[attr-defined]
    table._maps = {name: Advised(advised, mapped) for name, mapped in maps.items()}  # type: ignore[attr-defined]
    check(table, network, inputs)
    assert advised == []
    monkeypatch.setattr(mapping, "RESIDENT_BYTES", 2 * len(maps["exit_0"]) - 1)
    check(table, network, inputs)
    assert len(advised) >= len(maps)
    assert len(advised) % len(maps) == 0


def test_a_store_larger_than_memory_is_fetched_a_batch_at_a_time(
    inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network()
    on_disk(make_source(network, inputs), tmp_path / "key")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    table = FeatureStore.open(tmp_path / "key").table()
    fetched: list[tuple[int, ...]] = []
    maps = table._maps  # type: ignore[attr-defined]
    table._maps = {name: Advised(fetched, mapped) for name, mapped in maps.items()}  # type: ignore[attr-defined]
    check(table, network, inputs)
    assert len(fetched) == len(maps) * len(inputs)
    width = len(maps["exit_0"]) // len(inputs)
    assert all(start % mmap.PAGESIZE == 0 for _, start, _ in fetched)
    assert max(start + length for _, start, length in fetched) == max(map(len, maps.values()))
    assert min(length for _, _, length in fetched) <= width


class Advised:
    def __init__(self, log: list[Any], mapped: object) -> None:
        self.log, self.mapped = log, mapped

    def __len__(self) -> int:
        return len(self.mapped)  # type: ignore[arg-type]

    def madvise(self, advice: int, *where: int) -> None:
        self.log.append((advice, *where) if where else advice)
        self.mapped.madvise(advice, *where)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (partial(feature_options, "ram"), "model.features"),
        (partial(FeatureOptions, store="ram"), "model.features.store"),
        (partial(FeatureOptions, views=-1), "model.features.views"),
        (partial(FeatureOptions, dtype="int8"), "model.features.dtype"),
    ],
)
def test_wrong_options_are_refused(make: partial, field: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert error.value.field == field


def test_options_by_name() -> None:
    assert feature_options("off") is feature_options(False) is None
    assert feature_options("memory") == FeatureOptions()
    assert feature_options(FeatureOptions("disk", views=2)) == FeatureOptions("disk", 2)
