"""`nlpstack embed`: contextual embeddings of the lines of a file."""

from typing import Any

import click

from nlpstack.cli.options import arguments, echo, machine_options, model_option, output_options
from nlpstack.errors import ConfigError

_NOTE = (
    "note: embeddings crowd into a narrow cone, so read cosines against that of any two lines; z-scoring (--zscore) "
    "opens the cone, which helps similarity, not classification"
)


@click.command("embed")
@click.argument("source", metavar="INPUT")
@model_option
@click.option("--pooling", type=click.Choice(["mean", "cls", "token"]), default="mean", help="Mean, [CLS], each token.")
@click.option("--layer", type=int, metavar="N", help="0: the embeddings; -1: the last.  [default: the last]")
@click.option("--out", metavar="FILE", help="FILE.npy, one row a line; with --pooling token FILE.npz.")
@click.option("--zscore", metavar="FILE", help="A corpus to fit z-scores on, or FILE.npz with fitted ones.")
@click.option("--batch-tokens", type=click.IntRange(min=1), default=4096, help="Tokens at a time, with padding.")
@click.option("--truncate", is_flag=True, help="Cut lines that are longer than the model's context.")
@machine_options
@output_options
def embed_command(source: str, model: str, out: str | None, **given: Any) -> None:
    """Contextual embeddings of the lines of INPUT, a .txt (one text a line) or a .jsonl (`text`), also .gz or .zst.

    They are written to --out; without it, --json prints them. A BERT reads [CLS] text [SEP], a GPT what it begins texts
    with and the text; the mean is over all of these. How alike any two lines are is told on standard error.

    \b
    Examples:
      nlpstack embed --model runs/bert lines.txt --out lines.npy
      nlpstack embed --model runs/bert lines.txt --out lines.npy --layer -2 --zscore corpus.txt
    """
    from nlpstack.embed import EmbedOptions, embed

    if out is None and not given["as_json"]:
        raise ConfigError("the vectors have nowhere to go; give --out FILE, or --json to print them")
    options = EmbedOptions(**arguments(given, "pooling", "layer", "zscore", "batch_tokens", "truncate"))
    result = embed(model, source, options, out=out)
    lost = "truncated: {:,} texts of {} lost {:,} tokens beyond the context"
    cuts = (source, result.cut), (given["zscore"], result.corpus_cut)
    report = [lost.format(cut.texts, path, cut.tokens) for path, cut in cuts if cut.texts]
    if result.mean_cosine is None:
        report.append("cosine: there are no two lines to compare")
    else:
        after = "" if result.mean_cosine_zscored is None else f"; with z-scores {result.mean_cosine_zscored:.4f}"
        report.append(f"cosine: {result.mean_cosine:.4f} on average of {result.n_pairs:,} pairs of lines{after}")
    if (zscore := result.zscore) is not None:
        saved = f", saved as {result.zscore_out}" if result.zscore_out else ", not saved, as there is no --out"
        report.append(f"z-scores: fitted on {zscore.corpus}{saved if given['zscore'] == zscore.corpus else ''}")
        if zscore.n_constant:
            report.append(f"z-scores: {zscore.n_constant:,} dimensions are constant on it, and became 0")
    if not given["quiet"]:
        click.echo("\n".join([*report, _NOTE]), err=True)
    n_lines, dim = len(result.vectors), result.vectors[0].shape[-1]
    about = {"out": result.out, "lines": n_lines, "dim": dim, "pooling": result.pooling, "layer": result.layer}
    cosines = {name: getattr(result, name) for name in ("mean_cosine", "mean_cosine_zscored")}
    about |= {"truncated": result.cut, **cosines, "zscore": result.zscore_out}
    tokens = f"{sum(map(len, result.vectors)):,} tokens of " if isinstance(result.vectors, list) else ""
    plain = f"{out}: {tokens}{n_lines:,} lines, {dim:,} dimensions ({result.pooling} of layer {result.layer})"
    echo(about if out else [one.tolist() for one in result.vectors], plain, as_json=given["as_json"])
