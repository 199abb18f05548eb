"""What `nlpstack finetune` does, top to bottom: a pretrained model and labelled data to a model that does a job."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlpstack.baselines import labelled_baselines
from nlpstack.data.batch import Bucketed
from nlpstack.data.labelled import load_labelled, split_key
from nlpstack.data.readers import Note, find_splits
from nlpstack.decode import Sampling
from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError
from nlpstack.hub import weights_hash
from nlpstack.job import Material, RunOptions, RunResult, count_parameters, run_job
from nlpstack.model import BERT, GPT, LanguageModel
from nlpstack.model.lora import add_lora
from nlpstack.start import begin_with, newest_pretrained
from nlpstack.tasks import Classification, Generation, LabelledTask, labelled_task
from nlpstack.tasks.labelled import EncodedRows
from nlpstack.train.run import Reporter, Run, load_run, read_record

RUNS = Path("runs")
_SHOWN_CHARS = 100  # of an example that is shown


def finetune(
    recipe: str = "ner",
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    options: RunOptions | None = None,
    reporter: Reporter | None = None,
) -> RunResult | None:
    """Adapt a model by a recipe, with `overrides` ("section.key=value"), into the run folder `out` (runs/<recipe>).

    `task`, where given, must be the recipe's. Without `options.model` it is the newest pretraining run under runs/. The
    run's figures come back, None after a dry run. NlpstackError for what can be mended; Stopped, saved, by a signal.
    """
    options, reporter = options or RunOptions(), reporter or Reporter()
    run = load_run(recipe, "finetune", options.flags, overrides)
    own = run.config.task.name
    if not own or task not in (None, own):
        raise ConfigError(f"--task {task}: the recipe '{run.name}' is of the task {own or 'pretraining'} (task.name)")
    path = Path(out) if out is not None else RUNS / run.name
    kept = read_record(path).get("start", {}).get("model") if resume else None  # by the run that goes on
    given = options.model if options.model is not None else kept
    place = Path(newest_pretrained(RUNS, causal=own == "generation") if given is None else given)
    reporter.say(f"starts from {place}")
    start, run = begin_with(place, run)
    prepare = partial(_prepare, run, start, place)
    return run_job(run, replace(options, model=place), path, prepare, reporter, resume=resume, overwrite=overwrite)


def _prepare(run: Run, start: LanguageModel, place: Path, _cache: Path, note: Note) -> Material:
    config = run.config
    name, seed, paths = config.task.name, config.train.seed, config.data.paths
    splits: dict[str, Any] = load_labelled(paths, name, val_share=config.data.val_share, seed=seed, note=note)
    task = labelled_task(start, config.task, splits["train"], note)
    model, fresh = _with_heads(start, run, task, note)
    train, val = (task.encode(splits[part], part, note) for part in ("train", "val"))
    if isinstance(task, Classification):
        task.weigh(splits["train"])
    base = str(place), weights_hash(place)
    _adapt(model, run, base, fresh, note)
    lengths, size, budget = train.lengths, config.train.batch_size, config.train.batch_tokens
    order = Bucketed(lengths, batch_size=size or 0, batch_tokens=budget or 0, seed=seed)
    counts = ", ".join(f"{part} {len(examples):,}" for part, examples in splits.items())
    note(f"examples: {counts}; rows of {min(lengths)} to {max(lengths)} tokens; padding {order.padding():.1%}")
    if unknown := train.count(task.tokenizer.unk_id):
        note(f"{unknown:,} of {sum(lengths):,} training tokens are of characters that the tokenizer does not know")
    hashes = {f"data_{part}": split_key(members) for part, members in find_splits(paths, name).items()}
    return Material(
        model=model,
        task=task,
        order=order,
        collate=train.batch,
        seq_len=max(1, round(sum(lengths) / len(lengths))),
        val=val,
        write_samples=lambda: _samples(task, model, val, run),
        baselines=lambda: labelled_baselines(task, splits["train"], val.examples, learn=False),
        hashes={"tokenizer": task.tokenizer.hash, "model": base[1], **hashes},
        start=base[0],
    )


def _with_heads(start: LanguageModel, run: Run, task: LabelledTask, note: Note) -> tuple[LanguageModel, list[str]]:
    """The model with the heads that the task needs, those of `start` or else fresh; the names of fresh weights."""
    if isinstance(start, GPT):
        gpt = GPT(run.config.model, start.tokenizer)
        gpt.load_state_dict(start.state_dict())
        return gpt, []
    assert not isinstance(task, Generation)
    shape, seed, labels = run.config.model, run.config.train.seed, task.labels
    model = BERT.create(shape, seed=seed, tokenizer=start.tokenizer, heads=task.heads, labels=labels)
    own = start.state_dict().items()
    kept = {name: tensor for name, tensor in own if not name.startswith("classifier.") or start.labels == labels}
    fresh = model.load_state_dict(kept, strict=False).missing_keys  # heads that are left behind are passed over
    modules = sorted({name.partition(".")[0] for name in fresh})
    left = [head for head in start.heads if head not in task.heads]
    note(f"heads: fresh {', '.join(modules) or 'none'}; left behind {', '.join(left) or 'none'}")
    return model, fresh


def _adapt(model: LanguageModel, run: Run, base: tuple[str, str], fresh: list[str], note: Note) -> None:
    """Adapters on `base` if asked for, beside which fresh weights train; frozen weights; how much of it all trains."""
    lora, freeze = run.config.lora, run.config.train.freeze
    names = [name for name, _ in model.named_parameters()]
    if missing := [prefix for prefix in freeze if not any(name.startswith(prefix) for name in names)]:
        blocks = f"transformer.blocks.0 to {run.config.model.n_layers - 1}"
        there = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names} - {"transformer.blocks"}))
        raise ConfigError(f"train.freeze: no weight's name begins with {missing[0]!r}; there are {there}, {blocks}")
    if lora.rank:
        wrapped = add_lora(model, lora, seed=run.config.train.seed)
        pooler = [name for name in names if name.startswith("pooler.")] if lora.pooler else []
        if lora.pooler and not pooler:
            raise ConfigError(f"lora.pooler: the task {run.config.task.name} has no pooler; leave it out")
        for name in [*fresh, *pooler]:
            model.get_parameter(name).requires_grad_(True)
        model.base = base
        kind = "DoRA" if lora.dora else "rsLoRA" if lora.rslora else "LoRA"
        note(f"{kind}: rank {lora.rank} on {len(wrapped)} layers ({', '.join(sorted(lora.targets))})")
    for name, parameter in model.named_parameters():
        if any(name.startswith(prefix) for prefix in freeze):
            parameter.requires_grad_(False)
    if not (trained := sum(p.numel() for p in model.parameters() if p.requires_grad)):
        raise ConfigError("train.freeze: nothing is left to train")
    total = count_parameters(model)
    note(f"model: {total:,} parameters, of which {trained:,} train ({trained / total:.2%})")


@torch.no_grad()
def _samples(task: LabelledTask, model: nn.Module, val: EncodedRows, run: Run) -> list[dict[str, str]]:
    """What the model makes of the first examples of the validation part."""
    n = min(run.config.train.samples, len(val.examples))
    if isinstance(task, Generation):
        chosen = val.examples[:n]
        texts = task.write(model, chosen, Sampling(max_new_tokens=run.config.train.sample_tokens, greedy=True))
        return [{"prompt": one.prompt[:_SHOWN_CHARS], "text": t} for one, t in zip(chosen, texts, strict=True)]
    part = replace(val, rows=[row for row in val.rows if row.example < n])
    said = []
    with evaluating(model):
        for number, found in task.results(model, part, run.config.eval.batch_tokens):
            example = val.examples[number]
            text = example.text if isinstance(task, Classification) else " ".join(example.words)
            entities = "; ".join(f"{one['label']} {one['text']}" for one in found.get("entities", ()))
            said.append({"prompt": text[:_SHOWN_CHARS], "text": str(found.get("label", entities))})
    return said
