"""`eenet layers`: the study of layer selection in a decoder: both families of plans, the oracle, the controllers."""

from typing import Literal

from eenet.parsing.refusals import Parser


def main(args: list[str]) -> None:
    """Run `eenet layers` with some arguments; a `UserError` for what `study_layers` refuses."""
    parser = Parser(prog="eenet layers", description="Study layer selection in a decoder.")
    parser.add_argument("model", type=str, help="`smollm2`, or a model's folder or name")
    parser.add_argument(
        "--data", type=str, required=True, help="configuration (configs/nlg) or JSONL, CSV, Parquet file"
    )
    parser.add_argument("--out", type=str, required=True, help="folder of results; a killed study goes on from it")
    parser.add_argument("--budgets", type=str, default="all", help="numbers of layers, as 1,2,4,30; or `all`")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens of a prompt that are judged")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts at a time")
    parser.add_argument(
        "--tau", type=float, default=0.9, help="cosine similarity that counts as enough, for controllers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of judged tokens, random plans, probes and folds")
    parser.add_argument(
        "--prompt", type=Literal["full", "plan"], default="full", help="layers of a prompt's tokens: all, or the plan's"
    )
    parser.add_argument(
        "--keys",
        type=Literal["projected", "absent"],
        default="projected",
        help="keys and values of the layers a token skips",
    )
    parser.add_argument(
        "--oracle", type=Literal["mean", "each"], default="mean", help="plans judged on the mean or on each prompt"
    )
    parser.add_argument(
        "--skipping", type=str, default="strided,uniform,random", help="families of plans beside early exit"
    )
    parser.add_argument("--tuned", type=str, default="", help="runs of PlanTuning, as a,b, for their plans")
    parser.add_argument("--gates", type=str, default="", help="runs of GateTraining, as a,b, judged beside the plans")
    parser.add_argument("--device", type=str, default="cpu", help="where the model runs: cpu, cuda or mps")
    parser.add_argument("--dtype", type=str, default="float32", help="of the weights: float32, bfloat16 or float16")
    parser.add_argument("--download", type=bool, default=False, help="download a model that is not on this machine")
    options = parser.parse_args(args).as_dict()
    from eenet.cli.layer_study import study_layers

    study_layers(**options)
