"""A run from its recipe to its results: what every stage that trains has in common."""

import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlpstack import __version__
from nlpstack.baselines import SHOWN
from nlpstack.config import checked
from nlpstack.data.batch import Batch, Bucketed, Example, Loader, Order
from nlpstack.data.readers import Note
from nlpstack.errors import CheckpointError, ConfigError, TrainingError
from nlpstack.files import standing
from nlpstack.hub import save_model, weights_hash
from nlpstack.hub.folder import license_of, model_card, shape_facts
from nlpstack.memory import describe_memory, estimate_memory
from nlpstack.metrics import Metric, Score, compute
from nlpstack.model import LanguageModel
from nlpstack.model.kernels import faster_in_training
from nlpstack.model.lora import trainable_state
from nlpstack.model.losses import loss_chunk
from nlpstack.report import add_loss_picture
from nlpstack.results import chosen
from nlpstack.signals import Stopped, StopSignal
from nlpstack.tasks import Task
from nlpstack.train import runtime
from nlpstack.train.run import LOSS_PICTURE, Reporter, Run, RunConfig, RunFolder, finite, read_results, write_results
from nlpstack.train.runtime import Choices
from nlpstack.train.trainer import Trainer, evaluate, frozen_hash


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is asked of a run beside its recipe."""

    flags: Mapping[str, Any] = field(default_factory=dict)  # "section.key" -> value, weaker than overrides
    model: str | Path | None = None  # start from its weights and tokenizer; None: the stage's default
    tokenizer: str | Path | None = None  # a tokenizer's folder; None: the model's, or one trained on the corpus
    dry_run: bool = False  # check everything, do one step, write nothing
    inexact: bool = False  # resume although a choice cannot be kept
    stop: StopSignal = field(default_factory=StopSignal)
    command: str = ""  # as typed, for the record


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run."""

    out: str
    model: str
    steps: int
    tokens: int
    seconds: float  # of training steps
    tokens_per_second: float
    val: dict[str, float | None]  # the last validation's scores
    seed: int
    parameters: int
    weights: str  # SHA-256 of model.safetensors
    finished_before: bool = False  # nothing was left to do


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a stage makes of its files, for the trainer to work on."""

    model: LanguageModel
    task: Task
    order: Order  # of the training examples
    collate: Callable[[list[Example]], Batch]
    seq_len: int  # tokens an example has, at most or on average
    val: object  # what `evaluate` scores
    first_loss: float | None = None  # nats; what fresh weights should give
    write_samples: Callable[[], list[dict[str, str]]]  # texts to look at, made at each validation
    baselines: Callable[[], dict[str, Metric]] = dict  # name -> what guessing gets, beside the final scores
    hashes: dict[str, str] = field(default_factory=dict)  # of data and tokenizer: a resumed run must find the same
    start: str = ""  # the model whose weights the run began with


Prepare = Callable[[Path, Note], Material]  # (cache folder, note)


@dataclass
class Job:
    """One run of a stage; `prepare` is where stages differ."""

    run: Run
    options: RunOptions
    folder: RunFolder
    reporter: Reporter
    prepare: Prepare

    def __post_init__(self) -> None:
        self.config = self.run.config
        self.say = self.reporter.say
        self.is_first = not runtime.rank()  # of several processes the one that writes

    def execute(self) -> RunResult:
        """Train to the end, from the start or from the newest checkpoint; raises Stopped after saving."""
        started = time.perf_counter()
        kept = self.folder.choices()
        if kept is not None and (done := self._finished(kept)) is not None:
            self.say(f"{self.folder.path}: already finished after {done.steps:,} steps")
            return done
        cache = Path(self.config.data.cache) if self.config.data.cache else self.folder.path.parent / ".cache"
        with run_session(self.config, kept):
            if runtime.rank():  # the first process makes what the others find in the cache
                runtime.gathered(None)
            material = self.prepare(cache, self.say)
            if self.is_first:
                runtime.gathered(None)
            trainer = self._trainer(material, kept)
            if kept is None and (minutes := self.config.train.minutes) is not None:
                seconds = trainer.seconds_per_step()  # once, from the time a few steps take
                steps = max(1, math.floor((minutes * 60 - (time.perf_counter() - started)) / seconds))
                steps = runtime.gathered(steps)[0]
                self.say(f"train.minutes={minutes:g}: {seconds * 1e3:.1f} ms a step, {steps:,} steps")
                trainer.choices = replace(trainer.choices, steps=steps)
            self._settle(trainer, material, kept)
            try:
                trainer.train()
            except Stopped as stopped:
                if stopped.saved:  # between two steps, not at once in the middle of one
                    self._write_model(trainer, material)
                raise
            return self._finish(trainer, material)

    def rehearse(self) -> None:
        """Everything up to and with the first step; the folder is one that will be thrown away."""
        with run_session(self.config):
            material = self.prepare(self.folder.path, self.say)
            trainer = self._trainer(material, None)
            choices, batch_size = trainer.choices, material.order.batch_size
            self.say(f"shape: {self.config.model}")
            self.say(describe_memory(estimate_memory(material.model, self.config, choices, batch_size=batch_size)))
            minutes = self.config.train.minutes
            steps = f"{choices.steps:,}" if minutes is None else f"as many as fit {minutes:g} minutes"
            at_most = "at most " if isinstance(material.order, Bucketed) else ""
            self.say(f"steps: {steps} of {at_most}{batch_size} sequences; {choices}")
            batch = trainer.loader.micro_batches(0)[0]
            self.say(f"first batch: {tuple(batch.tokens.shape)}, {batch.n_targets}, {batch.tokens[0, :16].tolist()}...")
            trainer.choices = replace(choices, steps=max(1, choices.steps))
            report = next(trainer.steps())
            self.say(f"step 1: loss {report.loss:.4f}, gradient norm {report.grad_norm:.3f}; nothing was written")

    def _finished(self, kept: Choices) -> RunResult | None:
        """The figures of a run that has nothing left to do; without its model, the last checkpoint makes that again."""
        figures = read_results(self.folder.path).get("run")
        if figures is None or (self.config.train.steps or 0) > kept.steps or not standing(self.folder.model).exists():
            return None
        done = checked(RunResult, figures, f"{self.folder.path}/results.json: run", CheckpointError)
        return replace(done, finished_before=True)

    def _trainer(self, material: Material, kept: Choices | None) -> Trainer:
        config = self.config
        own = kept or make_choices(config, material.model, material.order, seq_len=material.seq_len, note=self.say)
        choices: Choices = runtime.gathered(own)[0]  # of several processes, should their machines differ, the first's
        material.task.loss_chunk = choices.loss_chunk
        model = material.model
        model.transformer.train_attention = choices.attention
        model.transformer.checkpoint_activations = config.train.activation_checkpointing
        share = runtime.rank(), runtime.world_size()
        val_config = replace(config.eval, resamples=0, new_tokens=0)  # intervals come with the last scores

        def validate() -> dict[str, Any]:
            scores = evaluate(model, material.task, material.val, val_config, dtype=choices.dtype)
            return {"val": {name: s.value for name, s in scores.items()}, "samples": material.write_samples()}

        # The global generators, which only dropout draws from.
        torch.manual_seed(config.train.seed + runtime.rank())
        return Trainer(
            model=model,
            task=material.task,
            loader=Loader(material.order, material.collate, micro_batch=choices.micro_batch, share=share),
            config=config.train,
            optim=config.optim,
            choices=choices,
            checkpoints=self.folder.checkpoints,
            log=self.folder.log,
            reporter=self.reporter,
            validate=validate,
            expected_first_loss=material.first_loss,
            stop=self.options.stop,
        )

    def _settle(self, trainer: Trainer, material: Material, kept: Choices | None) -> None:
        """Write the choices of a new run; hold a resumed one to its own, and put its state back."""
        if kept is not None:
            self._check_kept(kept, material.hashes)
            trainer.choices = replace(kept, steps=max(kept.steps, self.config.train.steps or 0))
            checkpoint = self.folder.checkpoints.load_newest(self.say, trainable_state(trainer.model))
            if checkpoint is None:
                trainer.log.cut(0)
                self.say("no checkpoint yet: starts at step 0")
            else:
                trainer.restore(checkpoint)
                self.say(f"resumed after step {trainer.state.step:,} of {trainer.choices.steps:,}")
        elif self.is_first:
            self.folder.clear()
        if self.is_first:
            self.folder.write_record(self.run, self._records(trainer.choices, material))
        self.say(str(trainer.choices))

    def _check_kept(self, kept: Choices, hashes: dict[str, str]) -> None:
        then, path, asked = self.folder.record.get("hashes", {}), self.folder.path, self.config.train.steps
        names = sorted(then.keys() | hashes.keys())
        if changed := ", ".join(name for name in names if then.get(name) != hashes.get(name)):
            raise CheckpointError(f"{path}: --resume with other contents than before: {changed}; put them back")
        if asked is not None and asked < kept.steps:
            raise CheckpointError(f"{path}: --resume with train.steps={asked}, fewer than the run's {kept.steps}")
        if unkept := "; ".join(kept.unkept()):
            if not self.options.inexact:
                raise CheckpointError(f"{path}: cannot go on exactly ({unkept}); --inexact goes on all the same")
            self.say(f"going on inexactly: {unkept}")

    def _records(self, choices: Choices, material: Material) -> dict[str, dict[str, Any]]:
        """The tables that config.toml has beside the recipe's; those that would say nothing are left out."""
        versions = {name: metadata.version(name) for name in ("torch", "numpy", "sentencepiece", "safetensors")}
        tables: dict[str, dict[str, Any]] = {
            "hashes": material.hashes,
            "versions": {"nlpstack": __version__, "python": platform.python_version(), **versions},
            "choices": asdict(choices),
            "start": {"model": material.start},
            "command": {"typed": self.options.command},
            "inexact": {"changed": choices.unkept() or self.folder.record.get("inexact", {}).get("changed")},
        }
        return {name: table for name, table in tables.items() if any(table.values())}

    def _write_model(self, trainer: Trainer, material: Material, scores: Mapping[str, Score] | None = None) -> None:
        state, model = trainer.state, trainer.parallel.whole()
        val = {name: f"{value:.4f}" for name, value in state.val.items()}
        val |= {name: f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})" for name, one in (scores or {}).items()}
        facts = {
            **shape_facts(model),
            "run": self.run.name,
            "data": ", ".join(self.config.data.paths),
            "training examples": material.order.n_examples,
            **({"task": name, "base": material.start} if (name := self.config.task.name) else {}),
            "license": license_of(Path(material.start)) if material.start else None,
            **{"steps": f"{state.step:,} of {trainer.choices.steps:,}", "tokens seen": f"{state.tokens:,}"},
            "scores on the validation part, with 95 % intervals" if scores else "scores on the validation part": val,
        }
        if self.is_first:
            save_model(model, self.folder.model, card=model_card(facts))
        runtime.gathered(None)

    def _finish(self, trainer: Trainer, material: Material) -> RunResult:
        """Write the model (fine-tuned or stopped early the best, else the last) and its scores, with intervals."""
        model, task, state, folder = trainer.model, trainer.task, trainer.state, self.folder
        if self.config.train.patience or self.config.task.name:
            trainer.take_best()
        if trainer.frozen_hash != (now := frozen_hash(model)):
            raise TrainingError(f"weights that do not train have changed (SHA-256 {now}); this is a fault of nlpstack")
        if n_frozen := sum(not parameter.requires_grad for parameter in model.parameters()):
            self.say(f"frozen: {n_frozen} tensors, unchanged to the bit (SHA-256 {now[:12]})")
        config = replace(self.config.eval, new_tokens=0)
        score = partial(evaluate, task=task, data=material.val, config=config, dtype=trainer.choices.dtype)
        scores = trainer.parallel.look(score)
        self._write_model(trainer, material, scores)
        result = RunResult(
            out=str(folder.path),
            model=str(folder.model),
            steps=state.step,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            tokens_per_second=round(state.tokens / max(state.seconds, 1e-9), 1),
            val=finite({name: score.value for name, score in scores.items()}),
            seed=self.config.train.seed,
            parameters=count_parameters(model),
            weights=weights_hash(folder.model),
        )
        baselines: dict[str, dict[str, Any]] = {}
        for name, guess in material.baselines().items():
            found = compute(guess, "", n_resamples=0, seed=0)
            shown = [one for one in SHOWN if one in found] or ["loss"]
            baselines[name] = chosen(found, shown)
            self.say(f"baseline {name}: " + "  ".join(f"{metric} {found[metric].value:.4f}" for metric in shown))
            for metric in shown:
                own, value, sign = scores[metric].value, found[metric].value, -1 if metric.endswith("loss") else 1
                if not sign * own > sign * value:
                    self.say(f"warning: the model's {metric}, {own:.4f}, is no better than that of the guess {name}")
        entry: dict[str, Any] = {"model": result.model, "task": task.name, "data": list(self.config.data.paths)}
        entry |= {"split": "val", **({"baselines": baselines} if baselines else {}), "metrics": chosen(scores)}
        if self.is_first:
            write_results(folder.path, {"results": [entry], "run": asdict(result)})
        return result


def run_job(
    run: Run, options: RunOptions, out: Path, prepare: Prepare, reporter: Reporter, *, resume: bool, overwrite: bool
) -> RunResult | None:
    """Do a run in its folder, or rehearse it in one that is thrown away (None comes back)."""
    if options.inexact and not resume:
        raise ConfigError("--inexact goes with --resume; a new run has nothing to be inexact about")
    for flag, given in (("--model", options.model), ("--tokenizer", options.tokenizer)):
        if given is not None and Path(given).resolve() in (out.resolve(), out.resolve() / "model"):
            raise ConfigError(f"{flag} {given}: stands in the run folder {out} itself; give another --out")
    for note in run.resolved.notes:
        reporter.say(note)
    if options.dry_run:
        RunFolder.check(out, resume=resume, overwrite=overwrite)
        with tempfile.TemporaryDirectory() as scratch:
            Job(run, options, RunFolder(Path(scratch)), reporter, prepare).rehearse()
        return None
    with RunFolder.open(out, resume=resume, overwrite=overwrite) as folder:
        if folder.record:
            folder.check_unchanged(run)
        try:
            result = Job(run, options, folder, reporter, prepare).execute()
            if not runtime.rank() and not (result.finished_before and (out / LOSS_PICTURE).exists()):
                with options.stop.deferred():  # the run is finished, so a signal has nothing left to stop
                    add_loss_picture(out, reporter.say)
        finally:
            if (stopped := options.stop.stopped) is not None:
                stopped.resumable = bool(folder.record) and (out / "config.toml").exists()
    return result


def run_session(config: RunConfig, kept: Choices | None = None) -> AbstractContextManager[None]:
    """The process as a run has it inside the block: as it chose before, else by its recipe and this machine."""
    if kept is not None:
        return runtime.session(threads=kept.threads, deterministic=kept.deterministic)
    deterministic = config.train.deterministic or runtime.resolve_device(config.train.device).type == "cpu"
    return runtime.session(threads=config.train.threads, deterministic=deterministic)


def count_parameters(model: nn.Module) -> int:
    """Weights of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def make_choices(config: RunConfig, model: LanguageModel, order: Order, *, seq_len: int, note: Note) -> Choices:
    """Settle everything that changes arithmetic, by fixed rules of hardware, versions, shapes and run length."""
    train = config.train
    device = runtime.resolve_device(train.device)
    exact = config.optim.full_batch and train.dtype == "auto"  # its line searches compare losses
    dtype = "fp32" if exact else runtime.resolve_dtype(train.dtype, device)
    if train.micro_batch > (size := order.batch_size):
        raise ConfigError(f"train.micro_batch={train.micro_batch} is more than the {size} sequences of a step")
    steps = train.steps or order.n_steps(train.epochs or 0)
    flops = 6.0 * count_parameters(model) * steps * order.batch_size * seq_len * config.optim.evaluations
    # Code compiled for many lengths depends on which came first: a resumed run would round in another way.
    no_code = "batches are of many lengths" if isinstance(order, Bucketed) else ""
    no_code = no_code or ("" if runtime.can_compile(device.type) else "no compiler on this machine")
    shared = train.parallel == "fsdp" and runtime.world_size() > 1  # blocks are put together anew for each call
    pays = not shared and runtime.compile_pays(device.type, dtype, minutes=train.minutes, flops=flops)
    wanted = pays if train.compile == "auto" else train.compile
    if wanted and no_code:
        note(f"torch.compile: {no_code}, so the run is eager")
    return Choices(
        steps=steps,
        device=str(device),
        dtype=dtype,
        compile=wanted and not no_code,
        threads=torch.get_num_threads(),
        micro_batch=train.micro_batch or order.batch_size,
        attention=faster_in_training(device.type, dtype, model.config.dropout),
        loss_chunk=loss_chunk(model.config.vocab_size),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        processor=runtime.processor_name(device.type),
        torch=torch.__version__,
        nlpstack=__version__,
        world=runtime.world_size(),
    )
