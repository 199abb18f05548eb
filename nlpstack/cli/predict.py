"""`nlpstack predict`."""

import json
import os
from pathlib import Path
from typing import Any

import click

from nlpstack.cli import options as shared
from nlpstack.errors import ConfigError
from nlpstack.files import check_output, naming


@click.command("predict")
@click.argument("source", metavar="INPUT")
@shared.folder_option("--model", "A fine-tuned run, model or adapter.", required=True)
@shared.base_option
@click.option("--out", metavar="FILE", help="Write the lines there instead of to stdout.")
@click.option("--resume", is_flag=True, help="Go on behind the whole lines that stand in --out.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Of several labels.")
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than the context.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, help="Of generated text.")
@shared.machine_options
@shared.output_options
def predict_command(source: str, model: str, out: str | None, resume: bool, **given: Any) -> None:
    """Labels, entities or texts for each row of INPUT (.txt, .tsv, .csv, .jsonl, .conll), as JSON lines in its order.

    \b
    Examples:
      nlpstack predict --model runs/ner-lora sentences.txt
      nlpstack predict --model runs/classification reviews.tsv --out labels.jsonl
    """
    from nlpstack.decode import Sampling
    from nlpstack.predict import PredictOptions, predict
    from nlpstack.train.runtime import gathered, keep_freed_memory, rank

    keep_freed_memory()
    if resume and out is None:
        raise click.UsageError("--resume goes with --out")
    options = PredictOptions(
        overrides={name: given[name] for name in ("threshold", "truncate") if given[name]},
        sampling=Sampling(greedy=True, max_new_tokens=given["max_new_tokens"]),
        **shared.arguments(given, "base"),
    )
    note = shared.make_reporter(quiet=given["quiet"]).say
    done = gathered(_whole_lines(out, resume=resume) if out and not rank() else 0)[0]
    lines = (json.dumps(one, ensure_ascii=False) for one in predict(model, source, options, skip=done, note=note))
    if out is None:
        for line in lines:
            click.echo(line)
        return
    if done:
        note(f"{out}: goes on behind {done:,} lines")
    place = os.devnull if rank() else out  # of several processes the first writes
    with naming(Path(out)), open(place, "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _whole_lines(path: str, *, resume: bool) -> int:
    """How many lines of an earlier start stand in a file, a broken last one cut off; a file is not replaced."""
    if not Path(path).exists():
        check_output(Path(path), "--out ")
        return 0
    if not resume:
        raise ConfigError(f"--out {path}: exists; --resume goes on behind its lines, or give another name")
    with open(path, "rb+") as opened:
        lengths = [len(line) for line in opened if line.endswith(b"\n")]
        opened.truncate(sum(lengths))
    return len(lengths)
