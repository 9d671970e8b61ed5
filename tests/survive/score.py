"""`python -m tests.survive.score --moments 2 --every 1 --folders 600`: how much was tried, and how much went wrong."""

import argparse
import tempfile
from pathlib import Path

from .exports import damaged_exports
from .harness import COMMANDS, Base, killed
from .wrong import strange_configurations, wrong_backbones, wrong_checkpoints


def main() -> None:
    """Print a line for everything that is wrong, and the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=2, help="kills of each command")
    parser.add_argument("--every", type=int, default=1, help="take one of so many wrong checkpoints and configurations")
    parser.add_argument("--folders", type=int, default=600, help="damaged exports")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        base = Base.make(place / "base")
        opened = [(name, ended) for name, ended in wrong_checkpoints(base, place / "run", options.every)]
        unclear = [f"checkpoint, {name}: {ended}" for name, ended in opened if not ended.clear]
        print(*unclear, f"checkpoints: {len(opened)} tried, {len(unclear)} unclear", sep="\n", flush=True)
        bare = list(wrong_backbones(base, place / "backbones", options.every))
        vague = [f"backbone, {name}: {ended}" for name, ended in bare[2:] if not ended.clear]
        vague += [f"backbone, {name}: refused, {ended}" for name, ended in bare[:2] if ended.code]
        print(*vague, f"backbones: {len(bare) - 2} wrong ones tried, {len(vague)} unclear", sep="\n", flush=True)
        strange = list(strange_configurations(base, place / "run", options.every))
        ran = [f"configuration, {name}: ran" for name, _, marked in strange if marked]
        vague = [
            f"configuration, {name}: {ended}"
            for name, ended, marked in strange
            if not marked and ended.code and not ended.clear
        ]
        print(
            *ran, *vague, f"configurations: {len(strange)} tried, {len(ran)} ran code, {len(vague)} unclear", sep="\n"
        )
        folders = damaged_exports(base, place / "folders", options.folders, options.seed)
        acted, bad = [one for one in folders if one.acted], [one for one in folders if one.unclear]
        print(
            *acted, *bad, f"folders: {len(folders)} tried, {len(acted)} acted, {len(bad)} unclear", sep="\n", flush=True
        )
        kills: list[str | None] = []
        for name in COMMANDS if options.moments else ():
            ends = list(killed(base, name, options.moments, options.seed))
            wrong = list(filter(None, ends))
            print(*wrong, f"kills of {name}: {len(ends)} tried, {len(wrong)} wrong", sep="\n", flush=True)
            kills += ends
        print(f"kills: {len(kills)} tried, {len(list(filter(None, kills)))} wrong")


if __name__ == "__main__":
    main()
