"""What `nlpstack pretrain` does, top to bottom: raw text to a tokenizer, shards, and a trained model."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nlpstack.baselines import masked_baselines
from nlpstack.data.batch import Shuffled
from nlpstack.data.corpus import load_corpus
from nlpstack.data.packing import PackedBlocks
from nlpstack.data.readers import Note
from nlpstack.data.shards import TokenShards, found_shards
from nlpstack.errors import ConfigError, ModelError
from nlpstack.hub import weights_hash
from nlpstack.job import Material, RunOptions, RunResult, count_parameters, run_job
from nlpstack.model import BERT, GPT, LanguageModel
from nlpstack.model.heads import HEADS
from nlpstack.start import begin_with
from nlpstack.tasks import CausalLM, MaskedLM
from nlpstack.tasks.corpus import make_tokenizer, tokenize_split, tokenized_before
from nlpstack.tokenizer import load_tokenizer
from nlpstack.train.run import Reporter, Run, RunConfig, load_run

_DESCRIBED_ROWS = 512  # training rows that the log's shares of hidden tokens are counted over


def pretrain(
    recipe: str = "gpt",
    overrides: Sequence[str] = (),
    *,
    arch: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    options: RunOptions | None = None,
    reporter: Reporter | None = None,
) -> RunResult | None:
    """Train a model by a recipe, with `overrides` ("section.key=value"), into the run folder `out` (runs/<recipe>).

    The run's figures, None after a dry run. NlpstackError for what can be mended; Stopped, saved, by a signal.
    """
    options, reporter = options or RunOptions(), reporter or Reporter()
    run = load_run(recipe, "pretrain", options.flags, overrides)
    if run.config.task.name or run.config.lora.rank or run.config.train.freeze:
        raise ConfigError(f"the recipe '{run.name}' has a task, adapters or frozen weights; use 'nlpstack finetune'")
    recipe_arch = "gpt" if run.config.model.causal else "bert"
    if arch is not None and arch != recipe_arch:
        raise ConfigError(f"--arch {arch}: the recipe '{run.name}' is of arch {recipe_arch} (model.causal)")
    start, run = begin_with(options.model, run) if options.model is not None else (None, run)
    path = Path(out) if out is not None else Path("runs") / run.name
    prepare = partial(_prepare, run, start, options)
    return run_job(run, options, path, prepare, reporter, resume=resume, overwrite=overwrite)


def _prepare(run: Run, start: LanguageModel | None, options: RunOptions, cache: Path, note: Note) -> Material:
    """The model to train, fresh or with the weights of `start`, its tokenizer, and the corpus as its task reads it."""
    config = run.config
    ready = found_shards(config.data.paths)  # tokens that were made ahead
    splits = {} if ready else load_corpus(config.data, note)
    given = load_tokenizer(options.tokenizer) if options.tokenizer is not None else None
    if start is not None and given is not None and given.hash != start.tokenizer.hash:
        raise ModelError(f"{options.tokenizer}: not the tokenizer of the model {options.model}; leave --tokenizer out")
    given = given if start is None else start.tokenizer
    if ready and given is None:
        raise ConfigError(f"--data {ready[0]}: holds tokens; give the tokenizer that made them with --tokenizer DIR")
    tokenizer = given or make_tokenizer(splits["train"], config.tokenizer, cache, note)
    hashes = {"tokenizer": tokenizer.hash, **{f"data_{name}": split.key for name, split in splits.items()}}
    if options.model is not None:
        hashes["model"] = weights_hash(options.model)
    if start is None:
        config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    task: CausalLM | MaskedLM = CausalLM(tokenizer)
    if not config.model.causal:
        task = MaskedLM(tokenizer, config.task, config.model.max_seq_len, language=config.data.language)
    if ready:
        shards = tokenized_before(ready, tokenizer, task.layout, config.data.val_share, note)
        hashes |= {f"tokens_{number}": TokenShards(folder).spec.key for number, folder in enumerate(ready, 1)}
    else:
        shards = [tokenize_split(splits[part], tokenizer, task.layout, cache, note=note) for part in ("train", "val")]
    material = _material(config, start, task, shards, note)
    what = "fresh weights" if start is None else f"{options.model}, whose shape holds, not the recipe's"
    note(f"model: {what}: {count_parameters(material.model):,} parameters, vocabulary {tokenizer.vocab_size:,}")
    return replace(material, hashes=hashes)


def _material(
    config: RunConfig, start: LanguageModel | None, task: CausalLM | MaskedLM, shards: list[TokenShards], note: Note
) -> Material:
    length, train, first_loss = config.model.max_seq_len, config.train, math.log(task.tokenizer.vocab_size)
    learned, val = shards
    if isinstance(task, CausalLM):
        model: LanguageModel = GPT.create(config.model, seed=train.seed, tokenizer=task.tokenizer)
        if start is not None:
            model.load_state_dict(start.state_dict())
        blocks = PackedBlocks(learned, length, train.seed)
        n_examples, collate = len(blocks), blocks.batch
        write_samples = partial(task.write, model, task.prompts(val, train.samples), train.sample_tokens, train.seed)
    else:
        rows = task.examples(learned, train.seed)
        for line in [*rows.about, *rows.describe(_DESCRIBED_ROWS)]:
            note(line)
        scored = task.scored_rows(val, config.eval)  # what cannot be scored is known before the first step
        note(f"validation: {scored.n_rows:,} rows, the same tokens hidden each time")
        model = _bert(config, start, task, note)
        n_examples, collate = rows.n_rows, rows.batch
        write_samples = partial(task.write, model, task.prompts(val, train.samples))
        first_loss += math.log(2) if config.task.nsp else 0.0
    return Material(
        model=model,
        task=task,
        order=Shuffled(n_examples, batch_size=train.sequences(length), seed=train.seed),
        collate=collate,
        seq_len=length,
        val=val,
        first_loss=first_loss if start is None else None,
        write_samples=write_samples,
        baselines=lambda: (
            {} if isinstance(task, CausalLM) else masked_baselines(learned, task.eval_batches(model, val, config.eval))
        ),
    )


def _bert(config: RunConfig, start: LanguageModel | None, task: MaskedLM, note: Note) -> BERT:
    """A BERT with the heads that its task trains; those that `start` has keep its weights, the others are fresh."""
    there = [head for head in start.heads if head in HEADS] if isinstance(start, BERT) else []
    model = BERT.create(config.model, seed=config.train.seed, tokenizer=task.tokenizer, heads={*task.heads, *there})
    if start is None:
        return model
    model.load_state_dict(start.state_dict(), strict=False)
    if fresh := [head for head in task.heads if head not in there]:
        note(f"heads that begin with fresh weights: {', '.join(fresh)}")
    if kept := [head for head in there if head not in task.heads]:
        for parameter in (p for name, p in model.named_parameters() if name.startswith(("pooler.", "nsp_head."))):
            parameter.requires_grad_(False)
        note(f"heads that are kept and not trained: {', '.join(kept)}")
    return model
