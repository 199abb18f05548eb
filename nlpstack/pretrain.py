"""What `nlpstack pretrain` does, top to bottom: raw text to a tokenizer, shards, and a trained model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nlpstack.data.corpus import load_corpus
from nlpstack.data.packing import PackedBlocks
from nlpstack.errors import ConfigError, ModelError
from nlpstack.hub import load_model, weights_hash
from nlpstack.job import Material, RunOptions, RunResult, count_parameters, run_job
from nlpstack.model import GPT
from nlpstack.report import add_loss_picture
from nlpstack.tasks import CausalLM
from nlpstack.tasks.corpus import make_tokenizer, tokenize_corpus
from nlpstack.tokenizer import Tokenizer, load_tokenizer
from nlpstack.train.log import Reporter, Silent
from nlpstack.train.run import LOSS_PICTURE, Run, load_run


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

    Returns the run's figures, None after a dry run. Raises NlpstackError for what the caller can mend, and Stopped,
    after saving, where `options.stop` was set.
    """
    options, reporter = options or RunOptions(), reporter or Silent()
    run = load_run(recipe, "pretrain", options.flags, overrides)
    recipe_arch = "gpt" if run.config.model.causal else "bert"
    if arch is not None and arch != recipe_arch:
        raise ConfigError(f"--arch {arch}: the recipe '{run.name}' is of arch {recipe_arch} (model.causal)")
    if recipe_arch != "gpt":
        raise ConfigError(f"{run.name}: model.causal=false, a bidirectional encoder, cannot be pretrained yet")
    start = load_model(options.model) if options.model is not None else None
    if start is not None:
        run = _with_shape_of(start, run, f"--model {options.model}")

    def prepare(cache: Path, threads: int, note: Callable[[str], None]) -> Material:
        return prepare_gpt(run, start, options, cache, threads, note)

    path = Path(out) if out is not None else Path("runs") / run.name
    result = run_job(run, options, path, prepare, reporter, resume=resume, overwrite=overwrite)
    if result is not None and not (result.finished_before and (path / LOSS_PICTURE).exists()):
        with options.stop.deferred():  # the run is finished, so a signal has nothing left to stop
            add_loss_picture(path, reporter.say)
    return result


def prepare_gpt(
    run: Run, start: GPT | None, options: RunOptions, cache: Path, threads: int, note: Callable[[str], None]
) -> Material:
    """The model to train, fresh or with the weights of `start`, its tokenizer, and the corpus as blocks of tokens."""
    config = run.config
    splits = load_corpus(config.data, note)
    tokenizer = _given_tokenizer(options, start) or make_tokenizer(splits["train"], config.tokenizer, cache, note)
    model = _fresh(run, tokenizer) if start is None else _continued(run, start)
    what = "fresh weights" if start is None else f"{options.model}, whose shape holds, not the recipe's"
    note(f"model: {what}: {count_parameters(model):,} parameters, vocabulary {tokenizer.vocab_size:,}")
    corpus = tokenize_corpus(splits, tokenizer, cache, threads=threads, note=note, names=("train", "val"))
    task = CausalLM(tokenizer)
    blocks = PackedBlocks(corpus.shards["train"], model.config.max_seq_len, config.train.seed)
    hashes = {"tokenizer": tokenizer.hash, **{f"data_{name}": split.key for name, split in splits.items()}}
    if options.model is not None:
        hashes["model"] = weights_hash(options.model)
    prompts = task.prompts(corpus.shards["val"], config.train.samples)
    return Material(
        model=model,
        task=task,
        n_examples=len(blocks),
        collate=blocks.batch,
        seq_len=model.config.max_seq_len,
        val=corpus.shards["val"],
        hashes=hashes,
        first_loss=math.log(tokenizer.vocab_size) if start is None else None,
        write_samples=lambda: task.write(model, prompts, config.train.sample_tokens, config.train.seed),
        facts={"data": ", ".join(config.data.paths)},
    )


def _given_tokenizer(options: RunOptions, start: GPT | None) -> Tokenizer | None:
    """The tokenizer that is not to be trained: the starting model's, or the one of --tokenizer."""
    given = load_tokenizer(Path(options.tokenizer)) if options.tokenizer is not None else None
    if start is None:
        return given
    own: Tokenizer | None = start.tokenizer
    if own is None:
        raise ModelError(f"{options.model}: has no tokenizer, so text cannot be turned into its tokens")
    if given is not None and given.hash != own.hash:
        raise ModelError(f"{options.tokenizer}: not the tokenizer of the model {options.model}; leave --tokenizer out")
    return own


def _fresh(run: Run, tokenizer: Tokenizer) -> GPT:
    shape = replace(run.config.model, vocab_size=tokenizer.vocab_size)
    return GPT.create(shape, seed=run.config.train.seed, tokenizer=tokenizer)


def _with_shape_of(start: GPT, run: Run, source: str) -> Run:
    """The run with the starting model's shape, but for dropout, which is no weight; a shape asked for is refused."""
    resolved = run.resolved
    for key, setter in resolved.origin.items():
        section, _, name = key.partition(".")
        if section != "model" or name == "dropout" or setter not in ("flag", "--set"):
            continue
        asked, given = getattr(run.config.model, name), getattr(start.config, name)
        if asked != given:
            raise ConfigError(f"{setter}: {key}={asked}, but {source} has {given}; leave it out")
    shape = replace(start.config, dropout=run.config.model.dropout)
    origin = {key: value for key, value in resolved.origin.items() if not key.startswith("model.")}
    origin.update((f"model.{name}", source) for name in asdict(shape) if name != "dropout")
    if "model.dropout" in resolved.origin:
        origin["model.dropout"] = resolved.origin["model.dropout"]
    sections = {**resolved.sections, "model": shape}
    resolved = replace(resolved, sections=sections, origin=origin)
    return Run(name=run.name, config=replace(run.config, model=shape), resolved=resolved)


def _continued(run: Run, start: GPT) -> GPT:
    """A model of the run's shape with the weights of another."""
    model = GPT(run.config.model, start.tokenizer)
    model.load_state_dict(start.state_dict())
    return model
