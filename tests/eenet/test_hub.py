"""Networks that are saved, loaded and uploaded as what they are at that moment."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

import eenet
from eenet.backbones import CifarResNet
from eenet.calibration import OperatingPoint
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.policies import Threshold


@pytest.fixture
def network() -> eenet.EarlyExitNetwork:
    found = eenet.EarlyExitNetwork(
        CifarResNet(8, 10, image_size=8), exits=[0, 1], gate=lambda exits: ConfidenceGate(exits, "margin")
    )
    got = {"accuracy": 0.9, "macs_fraction": 0.5}
    found.points = {"early": Threshold([0.9, 0.8]), "asked": OperatingPoint(Threshold([0.1, 0.2]), got=got)}
    return found.eval()


def test_what_is_loaded_is_what_was_saved(network: eenet.EarlyExitNetwork, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "net")
    network.points["early"].thresholds[0] = 0.25
    network.save_pretrained(tmp_path / "net")  # what was set later is kept, and the card says it
    again = eenet.EarlyExitNetwork.from_pretrained(tmp_path / "net")
    inputs = torch.randn(8, 3, 8, 8)
    torch.testing.assert_close(again(inputs).logits, network(inputs).logits, rtol=0, atol=0)
    torch.testing.assert_close(again(inputs).scores, network(inputs).scores, rtol=0, atol=0)
    early = again.points["early"].policy
    routed = again.route(inputs, early), network.route(inputs, network.points["early"])
    assert routed[0].exits.tolist() == routed[1].exits.tolist()
    assert early.thresholds.tolist() == pytest.approx([0.25, 0.8])
    card = (tmp_path / "net" / "README.md").read_text()
    assert "| asked |  | 90.00 | 50.00 |" in card
    assert "library_name: eenet" in card
    assert (tmp_path / "net" / "curve.png").stat().st_size > 1000


def test_a_network_that_has_changed_since_is_not_saved_as_another(
    network: eenet.EarlyExitNetwork, tmp_path: Path
) -> None:
    network.boosted = True
    with pytest.raises(UserError, match=r"network\.boosted = True: was made with False"):
        network.save_pretrained(tmp_path)


def test_a_strangers_class_is_not_imported(network: eenet.EarlyExitNetwork, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["init_args"]["backbone"] = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is not trusted"):
        eenet.EarlyExitNetwork.from_pretrained(tmp_path)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no network"):
        eenet.EarlyExitNetwork.from_pretrained(tmp_path)


def test_what_is_uploaded_is_the_folder(network: eenet.EarlyExitNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, list[str]] = {}

    class Repository:
        repo_id = "me/net"

    def upload(self: HfApi, *, folder_path: Path, **_: object) -> str:
        sent["files"] = sorted(path.name for path in Path(folder_path).iterdir())
        return "https://address"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Repository())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert network.push_to_hub("me/net") == "https://address"
    assert sent["files"] == ["README.md", "config.json", "curve.png", "model.safetensors"]


def test_of_a_pretrained_decoder_the_exits_and_points_alone_are_saved(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from eenet.backbones import Gpt
    from eenet.decoding import DecoderNetwork, RoutedExecutor, generate, pad_left
    from eenet.inference_modules import TiedHead
    from tests._dummies.word_decoder import write_decoder

    base = write_decoder(tmp_path / "base")
    network = DecoderNetwork(
        Gpt(task="tokens", pretrained=base), [1], lambda gpt: TiedHead(gpt, rank=2), ConfidenceGate
    )
    for weight in network.inference_modules.parameters():
        torch.nn.init.normal_(weight)
    network.points = {"early": OperatingPoint(Threshold([0.2]), got={"macs_fraction": 0.5, "agreement": 0.9})}
    network.eval().save_pretrained(tmp_path / "net")
    assert (tmp_path / "net" / "model.safetensors").stat().st_size < 2000
    again = DecoderNetwork.from_pretrained(tmp_path / "net")
    prompts = pad_left([[4, 5, 8], [7]])
    texts = [generate(RoutedExecutor(one, again.points["early"].policy), prompts, 8) for one in (network, again)]
    assert texts[0].tokens == texts[1].tokens
    assert [usage.layers for usage in texts[0].usage] == [usage.layers for usage in texts[1].usage]
    with torch.no_grad():
        network.backbone.layers[0].mlp.up_proj.weight += 1
    with pytest.raises(UserError, match="has other weights than its base model"):
        network.save_pretrained(tmp_path / "other")
