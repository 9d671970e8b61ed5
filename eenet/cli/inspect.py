"""`eenet inspect MODEL|CONFIG|RUN`: where a model can have exits, what each costs, and which formats it has."""

from pathlib import Path
from typing import Any

from eenet.errors import UserError
from eenet.parsing.refusals import Parser
from eenet.parsing.shipped import find_config


def main(args: list[str]) -> None:
    """Run `eenet inspect` with some arguments; a `UserError` for no such model, or one that cannot have exits."""
    parser = Parser(prog="eenet inspect", description="Print where a model can have exits, before anything is trained.")
    parser.add_argument(
        "model", type=str, help="timm:NAME, torchvision:NAME, transformers:FOLDER, file.py:NAME, a config, a run"
    )
    parser.add_argument("--weights", type=str | None, default=None, help="weight file of the model")
    parser.add_argument("--num-classes", type=int | None, default=None, help="number of classes")
    parser.add_argument("--input-shape", type=list[int] | None, default=None, help="of one image, as [3,32,32]")
    parser.add_argument("--arguments", type=dict[str, Any] | None, default=None, help="of the model, as {depth: 4}")
    parser.add_argument("--formats", type=bool, default=True, help="try every format of `eenet export`")
    options = parser.parse_args(args)
    from eenet.backbones.traced import Traced
    from eenet.backbones.traced.models import FORMS
    from eenet.cli.stages import backbone_of, show

    config = find_config(str(Path(options.model, "config.yaml"))) or find_config(options.model)
    if config is None and ":" not in options.model:
        raise UserError("model", options.model, f"is no configuration that is there; a model must be {FORMS}")
    if config is not None:
        backbone = backbone_of(config, options.weights)
    else:
        pretrained = False if options.weights is None else options.weights
        backbone = Traced(
            options.model, options.num_classes, options.input_shape, None, options.arguments, pretrained=pretrained
        )
    show(backbone, options.formats)
