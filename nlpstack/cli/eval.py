"""`nlpstack eval`."""

import json
from pathlib import Path
from typing import Any

import click

from nlpstack.cli import options as shared
from nlpstack.files import check_output, write_file


@click.command("eval")
@click.argument("models", nargs=-1, metavar="[MODEL ...]", shell_complete=shared.complete_folders)
@click.option("--recipe", metavar="NAME", shell_complete=shared.complete_recipes, help="A recipe of how to score.")
@click.option("--task", metavar="NAME", help="What to score it for [default: what it was trained for].")
@click.option("--data", multiple=True, metavar="PATH", help="Data to score [default: the run's own].")
@click.option("--documents", type=click.Choice(["files", "paragraphs"]), help="What a document is in .txt files.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, else val]")
@click.option("--predictions", metavar="FILE", help="Score what any system put out, with --references and --task.")
@click.option("--references", metavar="FILE", help="What it should have put out.")
@shared.base_option
@shared.unknown_labels(default="error", help="Examples with a label that training never saw.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this score; repeatable.")
@click.option("--window", type=int, help="Input tokens at a time [default: the model's context].")
@click.option("--stride", type=int, help="Tokens from window to window [default: the window].")
@click.option("--lowercase", is_flag=True, default=None, help="BLEU, chrF and exact match of lower-cased texts.")
@click.option("--dtype", type=shared.DTYPES, default="fp32", help="Products; in the signature.")
@click.option("--baselines/--no-baselines", default=None, help="Guessing beside the model [default: yes].")
@click.option("--examples", type=click.IntRange(0), help="Also the N worst, and scores by length and label.")
@click.option("--save", metavar="FILE", help="Also write the results to this JSON file.")
@click.option("--report", metavar="FILE.html", help="Also a page with tables and pictures (extra `report`).")
@click.option("--fail-under", multiple=True, metavar="METRIC=VALUE", help="Exit code 1 if worse; repeatable.")
@shared.machine_options
@shared.set_option
@shared.output_options
def eval_command(models: tuple[str, ...], **given: Any) -> int:
    """Score models (default: every finished run under runs/) and print one table.

    \b
    Examples:
      nlpstack eval
      nlpstack eval runs/gpt --data my-test.txt --stride 64
      nlpstack eval --predictions out.txt --references gold.txt --task generation
    """
    from nlpstack.eval import evaluate
    from nlpstack.report import check_report, report_page
    from nlpstack.results import EvalOptions, failed_gates, parse_gates
    from nlpstack.train.runtime import keep_freed_memory, rank

    keep_freed_memory()
    gates = parse_gates(given["fail_under"])
    if given["report"]:
        check_report()
    for name in filter(given.get, ("save", "report")):
        check_output(Path(given[name]), f"--{name} ")
    options = EvalOptions(
        ignore_unknown=given["unknown_labels"] == "ignore",
        flags={name: given[name] for name in ("window", "stride", "lowercase")},
        command=shared.typed_command(),
        **shared.arguments(given, "recipe", "task", "data", "documents", "split", "base", "metrics", "overrides"),
        **{name: given[name] for name in ("dtype", "baselines", "examples")},
    )
    reporter = shared.make_reporter(quiet=given["quiet"])
    if given["predictions"] or given["references"]:
        from nlpstack.eval import score_outputs

        missing = [f"--{name}" for name in ("predictions", "references", "task") if not given[name]]
        if missing or models:
            wrong = f"{missing[0]} is missing" if missing else f"a model ({models[0]}) cannot stand beside them"
            raise click.UsageError(f"--predictions, --references and --task go together: {wrong}")
        results = [score_outputs(given["predictions"], given["references"], given["task"], options, reporter.say)]
    else:
        results = evaluate(models, options, reporter=reporter)
    failed = failed_gates(results, gates)
    if rank():  # of several processes the first writes and answers
        return 0
    if given["save"]:
        write_file(Path(given["save"]), json.dumps({"results": results}, ensure_ascii=False) + "\n")
    if given["report"]:
        write_file(Path(given["report"]), report_page(results))
    if given["as_json"]:
        shown = [{key: value for key, value in result.items() if key != "resampled"} for result in results]
        shared.echo_json({"results": shown})
    else:
        _print_results(results)
    for line in failed:
        click.echo(f"--fail-under: {line}", err=True)
    return 1 if failed else 0


def _print_results(results: list[dict[str, Any]]) -> None:
    """One row a score, what guessing gets below, and each signature once; then the worst examples, if asked for."""
    from nlpstack.results import listed

    table: list[tuple[str, ...]] = [("model", "split", "metric", "value", "95 % interval", "n", "how")]
    signatures: dict[str, int] = {}
    for result in results:
        for guess, name, score in listed(result):
            number = signatures.setdefault(score["signature"], len(signatures) + 1)
            value, low, high = ("-" if score[k] is None else f"{score[k]:.4f}" for k in ("value", "low", "high"))
            model = f"  {guess}" if guess else result["model"]
            table.append((model, result["split"], name, value, f"{low} to {high}", f"{score['n']:,}", f"({number})"))
    shared.echo_table(table)
    for signature, number in signatures.items():
        click.echo(f"({number}) {signature}")
    for result in results:
        told = [f"{name}: {value:.4f}" for name, value in result.get("details", {}).items() if isinstance(value, float)]
        for name, scores in result.get("slices", {}).items():
            values = "  ".join(f"{k} {v if isinstance(v, int) or v is None else f'{v:.4f}'}" for k, v in scores.items())
            told.append(f"{name}: {values}")
        for line in [*told, *(json.dumps(one, ensure_ascii=False) for one in result.get("examples", ()))]:
            click.echo(f"{result['model']}  {line}")
