import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from eenet.cli.main import main
from eenet.errors import UserError
from eenet.features import Source, disk_table, extraction
from tests._dummies import make_network
from tests._dummies.cluster import Here
from tests.cli.test_cli import QUIET, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network, labels = make_network(), torch.arange(20) % 10
    for key in ("ab12", "cd34"):
        source = Source(f"noise {key}", network, lambda rows: [(torch.randn(len(rows), 1, 8, 8), None)], labels, labels)
        disk_table(source, source.layout("float32"), tmp_path / key)
    return tmp_path


def part_of(inputs: torch.Tensor, rows: range) -> list:
    return [(inputs[rows.start : rows.stop], None)]


def test_a_cluster_writes_the_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    source = Source("noise", make_network(), partial(part_of, inputs), labels, 3 * torch.arange(20))
    layout = source.layout("float32")
    monkeypatch.setattr(extraction, "SHARD_BYTES", 6 * layout.sample_bytes)

    def files(folder: str, cluster: Here | None) -> dict[Path, bytes]:
        disk_table(source, layout, tmp_path / folder, cluster)
        return {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}

    local = files("local", None)
    assert sum(path.parts[0] == "shards" for path in local) == 4
    assert files("spread", Here()) == local
    with pytest.raises(UserError, match=r"shard = '0': was lost"):
        files("lost", Here(change=lambda found: found[:-1]))
    with pytest.raises(UserError, match="other rows"):
        files("lost", Here(change=lambda found: [(number, [*ids[1:], 0], arrays) for number, ids, arrays in found]))
    assert files("lost", Here()) == local


def test_what_was_extracted_is_what_a_training_reads(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    config = tiny(tmp_path / "c.yaml", "JointExits", tmp_path / "run", warmup_epochs=1, phase_batches=2)
    field = f"--model.init_args.features={{store: disk, folder: {tmp_path / 'features'}}}"
    main(["features", "extract", f"--config={config}", field])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/shards/*.json")}
    assert len({path.parents[1] for path in written}) == 2
    main(["fit", "--config", str(config), field, *QUIET])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/shards/*.json")} == written
    with pytest.raises(SystemExit):
        main(["features", "extract", f"--config={config}", "--model.init_args.tradeof=1"])
    assert "did you mean" in capfd.readouterr().err


def test_stores_are_listed_with_their_sizes(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "cd34" / "shards" / "000000.json").unlink()
    main(["features", "list", "--folder", str(folder)])
    printed = capsys.readouterr().out
    assert "ab12 │ noise ab12 │ 20" in printed
    assert "1 of 1" in printed
    assert "0 of 1" in printed
    size = sum(path.stat().st_size for path in folder.glob("*/*.bin"))
    assert f"total: {size / 1e6:.1f} MB" in printed


def test_removing_takes_the_beginning_of_a_key(folder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["features", "remove", "ab", "--folder", str(folder)])
    assert [path.name for path in folder.iterdir()] == ["cd34"]
    with pytest.raises(SystemExit) as end:
        main(["features", "remove", "ab", "--folder", str(folder)])
    assert end.value.code == 2
    assert "key = 'ab': no store" in capsys.readouterr().err
    main(["features", "remove", "all", "--folder", str(folder)])
    assert list(folder.iterdir()) == []


def test_a_store_that_is_being_written_stays(folder: Path, capsys: pytest.CaptureFixture) -> None:
    with FileLock(folder / "ab12" / "lock"), pytest.raises(SystemExit):
        main(["features", "remove", "ab12", "--folder", str(folder)])
    assert "key = 'ab12': is being extracted" in capsys.readouterr().err
    assert (folder / "ab12" / "exit_0.bin").is_file()


def test_verifying_names_the_damaged_shard(folder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["features", "verify", "--folder", str(folder)])
    assert capsys.readouterr().out.count("1 of 1 shards are whole") == 2
    path = folder / "cd34" / "final_logits.bin"
    content = bytearray(path.read_bytes())
    content[7] ^= 128
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        main(["features", "verify", "--folder", str(folder)])
    assert end.value.code == 1
    assert "cd34: shard 0 (samples 0 to 19) is damaged" in capsys.readouterr().out


def changed(**values: object) -> Callable[[Path], None]:
    def change(store: Path) -> None:
        manifest = json.loads((store / "manifest.json").read_text())
        layout = {key: value for key, value in values.items() if key in manifest["layout"]}
        rest = {key: value for key, value in values.items() if key not in layout}
        (store / "manifest.json").write_text(json.dumps({**manifest, **rest, "layout": manifest["layout"] | layout}))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        *(changed(dtype="complex9"), changed(dtype=[1]), changed(shapes=3), changed(name=[1]), changed(samples="x")),
        *(changed(schema=[]), changed(shards=[["a"]]), changed(shards=[[-5, 10, 1]]), changed(shards=[[0, 10**18]])),
        lambda store: (store / "manifest.json").write_bytes(b""),
        lambda store: (store / "manifest.json").write_bytes(b"\xff"),
        lambda store: (store / "manifest.json").write_bytes(b"[" * 10**5),
    ],
)
def test_damaged_manifests_are_one_clear_error(
    folder: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture
) -> None:
    damage(folder / "cd34")
    for command in ("list", "verify"):
        with pytest.raises(SystemExit) as end:
            main(["features", command, "--folder", str(folder)])
        assert end.value.code == 2
        assert "cd34': holds no store of features" in capsys.readouterr().err


def linked(store: Path) -> None:
    array = (store / "exit_0.bin").rename(store.with_name("elsewhere.bin"))
    (store / "exit_0.bin").symlink_to(array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: (store / "exit_0.bin").unlink(),
        linked,
        lambda store: (store / "shards/000000.json").write_bytes(b"[" * 10**5),
        lambda store: (store / "shards/000000.json").write_bytes(b"\xff"),
    ],
)
def test_missing_arrays_links_and_wrong_shards_are_damaged(
    folder: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture
) -> None:
    damage(folder / "cd34")
    with pytest.raises(SystemExit) as end:
        main(["features", "verify", "--folder", str(folder)])
    assert end.value.code == 1
    assert "0 of 1 shards are whole" in capsys.readouterr().out
