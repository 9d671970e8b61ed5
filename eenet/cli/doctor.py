"""`eenet doctor`: versions for a bug report, what optional parts this machine has, and how to get the others."""

from eenet.parsing.refusals import Parser


def main(args: list[str]) -> None:
    """Run `eenet doctor` with some arguments; what is missing is no failure."""
    Parser(prog="eenet doctor", description="Print versions, and which optional parts there are.").parse_args(args)
    from rich.markup import escape
    from rich.table import Column, Table

    from eenet.cli.checks import data_and_models, machine, packages, versions
    from eenet.reporting import make_console

    print(*versions(), sep="\n")
    table = Table("", "what", "for", Column("found, or how to get it", overflow="fold"))
    for section in (data_and_models(), packages(), machine()):
        for check in section:
            found = check.find()
            mark, answer = ("[green]yes", found) if found is not None else ("[yellow]no", check.remedy)
            table.add_row(mark, check.name, check.use, escape(answer))
        table.add_section()
    make_console().print(table)
