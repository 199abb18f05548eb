"""`nlpstack predict`."""

from typing import Any

import click

from nlpstack.cli.options import complete_folders, machine_options, make_reporter, output_options


@click.command("predict")
@click.argument("source", metavar="INPUT")
@click.option(
    "--model", required=True, metavar="DIR", shell_complete=complete_folders, help="A fine-tuned run, model or adapter."
)
@click.option("--base", metavar="DIR", shell_complete=complete_folders, help="An adapter's base, where it has moved.")
@click.option("--out", metavar="FILE", help="Write the lines there instead of to stdout.")
@click.option("--resume", is_flag=True, help="Go on behind the whole lines that stand in --out.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Of several labels a text."
)
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than the context.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of generated text.")
@machine_options
@output_options
def predict_command(source: str, model: str, out: str | None, resume: bool, **given: Any) -> None:
    """Labels, entities or texts for each row of INPUT (.txt, .tsv, .csv, .jsonl, .conll), as JSON lines in its order.

    \b
    Examples:
      nlpstack predict --model runs/ner-lora sentences.txt
      nlpstack predict --model runs/classification reviews.tsv --out labels.jsonl
    """
    import json

    from nlpstack.decode import Sampling
    from nlpstack.errors import ConfigError
    from nlpstack.predict import PredictOptions, predict

    if resume and out is None:
        raise click.UsageError("--resume goes with --out")
    overrides = {"threshold": given["threshold"], "truncate": given["truncate"] or None}
    options = PredictOptions(
        base=given["base"],
        overrides={key: value for key, value in overrides.items() if value is not None},
        sampling=Sampling(greedy=True, max_new_tokens=given["max_new_tokens"]),
        device=given["device"] or "auto",
        threads=given["threads"],
    )
    note = make_reporter(quiet=given["quiet"]).say
    done = _whole_lines(out, resume=resume) if out else 0
    results = predict(model, source, options, skip=done, note=note)
    if out is None:
        for result in results:
            click.echo(json.dumps(result, ensure_ascii=False))
        return
    if done:
        note(f"{out}: goes on behind {done:,} lines")
    try:
        with open(out, "a", encoding="utf-8") as file:
            for result in results:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error


def _whole_lines(path: str, *, resume: bool) -> int:
    """How many lines of an earlier start stand in a file, a broken last one cut off; a file is not replaced."""
    from pathlib import Path

    from nlpstack.errors import ConfigError

    file = Path(path)
    if not file.exists():
        if not file.parent.is_dir():
            raise ConfigError(f"--out {path}: there is no folder {file.parent}; make it first")
        return 0
    if not resume:
        raise ConfigError(f"--out {path}: exists; --resume goes on behind its lines, or give another name")
    n_lines = length = 0
    with open(file, "rb+") as opened:
        for line in opened:
            if line.endswith(b"\n"):
                n_lines, length = n_lines + 1, length + len(line)
        opened.truncate(length)
    return n_lines
