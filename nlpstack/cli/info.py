"""`nlpstack info`."""

from dataclasses import fields
from typing import Any, get_args

import click

from nlpstack.cli.options import complete_targets, echo, machine_options, output_options, set_option


@click.command("info")
@click.argument("target", metavar="MODEL|RECIPE", shell_complete=complete_targets)
@machine_options
@set_option
@output_options
def info_command(target: str, overrides: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Size and cost of a recipe (a name or a .toml file), a run, or a model folder, before anything is trained.

    Parameters, FLOPs a token, bytes of training at the recipe's batch (an estimate, not compiled), and of a GPT's cache
    of keys and values. A name that is a recipe's is the recipe; ./NAME is the folder.

    \b
    Examples:
      nlpstack info gpt
      nlpstack info gpt --set model.dim=512 --set train.batch_size=64
      nlpstack info runs/gpt
    """
    from nlpstack.inspection import info
    from nlpstack.memory import MemoryEstimate

    flags = {f"train.{name}": given[name] for name in ("device", "threads") if given[name] is not None}
    found = info(target, overrides, flags=flags)
    says = {part.name: get_args(part.type)[1] for part in fields(MemoryEstimate)}
    shape, count, flops = found["shape"], found["parameters"], found["flops_per_token"]
    rule, cache = count["rule_12_l_d2"], found["kv_cache_bytes_per_token"]
    rows = [
        ("parameters", f"{count['total']:,}", ""),
        ("  embedding", f"{count['embedding']:,}", "tokens, positions, a separate unembedding"),
        ("  heads", f"{count['heads']:,}" if count["heads"] else None, "masked tokens, next sentence, labels"),
        ("  other", f"{count['other']:,}", f"blocks and the {'last' if shape['pre_norm'] else 'first'} norm"),
        ("  blocks", f"{count['blocks']:,}", f"12·L·d² gives {rule:,}, {rule / count['blocks'] - 1:+.1%}"),
        ("FLOPs a token", "", f"at the full context of {shape['max_seq_len']:,}"),
        ("  forward", f"{flops['forward'] / 1e6:,.2f} M", ""),
        ("  training", f"{flops['training'] / 1e6:,.2f} M", "forward and backward"),
        ("cache a token", cache and f"{cache / 2**10:,.1f} KiB", "keys and values in fp32; half of it in bf16"),
        ("memory", "", ""),
        *((f"  {name}", size and f"{size / 2**20:,.1f} MiB", says[name]) for name, size in found["bytes"].items()),
    ]
    heads = f"{shape['n_heads']} heads" + (f" ({shape['n_kv_heads']} of keys)" if shape["n_kv_heads"] else "")
    lines = [
        f"{found['kind']} {found['name']}: {shape['n_layers']} layers of {shape['dim']}, {heads}, "
        f"context {shape['max_seq_len']:,}, vocabulary {shape['vocab_size']:,}",
        *(f"{name:<15}{value:>15}  {note}".rstrip() for name, value, note in rows if value is not None),
    ]
    if (run := found["training"]) is not None:
        settled = ", ".join(f"{name} {run[name]}" for name in ("device", "dtype", "attention", "compile", "optimizer"))
        batch = f"{run['batch_size']:,} sequences of {run['sequence_length']:,} tokens"
        lines.append(f"a step of {batch}, {run['micro_batch']:,} at a time; {settled}")
    echo(found, "\n".join(lines), as_json=as_json)
    for note in () if quiet or as_json else found["notes"]:
        click.echo(note, err=True)
