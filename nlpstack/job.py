"""A run from its recipe to its results: what every stage that trains has in common."""

import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlpstack import __version__
from nlpstack.data.batch import Batch
from nlpstack.data.loader import Bucketed, Example, Loader, Order
from nlpstack.errors import CheckpointError, ConfigError, TrainingError
from nlpstack.files import standing
from nlpstack.hub import save_model, weights_hash
from nlpstack.hub.card import model_card, shape_facts
from nlpstack.memory import MemoryEstimate, current_memory, describe_memory, estimate_memory
from nlpstack.model import LanguageModel
from nlpstack.model.attention_product import faster_in_training
from nlpstack.model.losses import loss_chunk
from nlpstack.tasks import Task
from nlpstack.train import runtime
from nlpstack.train.evaluator import evaluate
from nlpstack.train.log import Reporter, finite
from nlpstack.train.run import Run, RunConfig, RunFolder, describe_choices
from nlpstack.train.runtime import Choices, Stopped, StopSignal
from nlpstack.train.trainer import Trainer, frozen_hash

_RECORDED_VERSIONS = ("torch", "numpy", "sentencepiece", "safetensors")


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
    first_loss: float | None  # nats; what fresh weights should give
    write_samples: Callable[[], list[dict[str, str]]]  # texts to look at, made at each validation
    keep_best: bool = False  # the model is that of the best validation, not of the last step
    baselines: Callable[[], dict[str, dict[str, float]]] = dict  # name -> scores of guessing, beside the final ones
    hashes: dict[str, str] = field(default_factory=dict)  # of data and tokenizer: a resumed run must find the same
    facts: dict[str, str] = field(default_factory=dict)  # for the model card
    start: str = ""  # the model whose weights the run began with


Prepare = Callable[[Path, int, Callable[[str], None]], Material]  # (cache folder, threads, note)


@dataclass(kw_only=True)
class Job:
    """One run of a stage; `prepare` is where stages differ."""

    run: Run
    options: RunOptions
    folder: RunFolder
    reporter: Reporter
    prepare: Prepare

    @property
    def config(self) -> RunConfig:
        """The sections of the run's recipe."""
        return self.run.config

    def execute(self) -> RunResult:
        """Train to the end, from the start or from the newest checkpoint; raises Stopped after saving."""
        started = time.perf_counter()
        kept = self.folder.choices()
        if kept is not None and (done := self._finished(kept)) is not None:
            self.reporter.say(f"{self.folder.path}: already finished after {done.steps:,} steps")
            return done
        threads = kept.threads if kept else self.config.train.threads or torch.get_num_threads()
        cache = Path(self.config.data.cache) if self.config.data.cache else self.folder.path.parent / ".cache"
        with runtime.session(threads=threads, deterministic=self._deterministic(kept)):
            material = self.prepare(cache, threads, self.reporter.say)
            trainer = self._trainer(material, kept)
            if kept is None and self.config.train.minutes is not None:
                self._fit_minutes(trainer, self.config.train.minutes * 60 - (time.perf_counter() - started))
            self._settle(trainer, material, kept)
            try:
                trainer.train()
            except Stopped as stopped:
                self._write_model(trainer, material)
                raise Stopped(stopped.signum, saved=str(self.folder.path)) from None
            return self._finish(trainer, material)

    def rehearse(self) -> None:
        """Everything up to and with the first step; the folder is one that will be thrown away."""
        threads = self.config.train.threads or torch.get_num_threads()
        say = self.reporter.say
        with runtime.session(threads=threads, deterministic=self._deterministic(None)):
            material = self.prepare(self.folder.path, threads, say)
            trainer = self._trainer(material, None)
            say(f"shape: {self.config.model}")
            say(describe_memory(self._memory(material.model, trainer.choices, material.order.batch_size)))
            minutes = self.config.train.minutes
            steps = f"{trainer.choices.steps:,}" if minutes is None else f"as many as fit {minutes:g} minutes"
            say(f"steps: {steps} of at most {material.order.batch_size} sequences; {describe_choices(trainer.choices)}")
            batch = trainer.loader.micro_batches(0)[0]
            say(f"first batch: {tuple(batch.tokens.shape)}, {batch.n_targets}, {batch.tokens[0, :16].tolist()}...")
            trainer.choices = replace(trainer.choices, steps=max(1, trainer.choices.steps))
            report = next(iter(trainer.steps()))
            say(f"step 1: loss {report.loss:.4f}, gradient norm {report.grad_norm:.3f}; nothing was written")

    def _memory(self, model: LanguageModel, choices: Choices, batch_size: int) -> MemoryEstimate:
        on_cpu = torch.device(choices.device).type == "cpu"
        weights = sum(parameter.nbytes for parameter in model.parameters()) if on_cpu else 0
        return estimate_memory(model, self.config, choices, batch_size=batch_size, process=current_memory() - weights)

    def _deterministic(self, kept: Choices | None) -> bool:
        if kept is not None:
            return kept.deterministic
        return self.config.train.deterministic or runtime.resolve_device(self.config.train.device).type == "cpu"

    # -- before the first step ---------------------------------------------------------------------------------------

    def _finished(self, kept: Choices) -> RunResult | None:
        """The figures of a run that has nothing left to do."""
        results = self.folder.results()
        if results is None or "run" not in results or (self.config.train.steps or 0) > kept.steps:
            return None
        if not standing(self.folder.model).exists():
            return None  # the last checkpoint makes it again
        try:
            return RunResult(**{**results["run"], "finished_before": True})
        except TypeError as error:
            raise CheckpointError(
                f"{self.folder.path}/results.json: altered, or of another version ({error})"
            ) from error

    def _trainer(self, material: Material, kept: Choices | None) -> Trainer:
        config = self.config.train
        choices = kept or make_choices(
            self.config, material.model, material.order, seq_len=material.seq_len, note=self.reporter.say
        )
        material.task.loss_chunk = choices.loss_chunk
        device = torch.device(choices.device)
        model = material.model.to(device)
        model.transformer.train_attention = choices.attention
        model.transformer.checkpoint_activations = config.activation_checkpointing
        val_config = replace(self.config.eval, resamples=0)  # intervals come with the last scores

        def validate() -> dict[str, Any]:
            scores = evaluate(model, material.task, material.val, val_config, device=device, dtype=choices.dtype)
            return {"val": {name: s.value for name, s in scores.items()}, "samples": material.write_samples()}

        runtime.seed_everything(config.seed)
        return Trainer(
            model=model,
            task=material.task,
            loader=Loader(material.order, material.collate, micro_batch=choices.micro_batch),
            config=config,
            optim=self.config.optim,
            choices=choices,
            checkpoints=self.folder.checkpoints,
            log=self.folder.log,
            reporter=self.reporter,
            validate=validate,
            expected_first_loss=material.first_loss,
            stop=self.options.stop,
        )

    def _check_frozen(self, trainer: Trainer) -> None:
        """Hold the weights that do not train to what they were at the start."""
        if trainer.frozen_hash != (now := frozen_hash(trainer.model)):
            raise TrainingError(f"weights that do not train have changed (SHA-256 {now}); this is a fault of nlpstack")
        n_frozen = sum(not parameter.requires_grad for parameter in trainer.model.parameters())
        if n_frozen:
            self.reporter.say(f"frozen: {n_frozen} tensors, unchanged to the bit (SHA-256 {now[:12]})")

    def _fit_minutes(self, trainer: Trainer, seconds_left: float) -> None:
        """Turn train.minutes into steps, once, from the time a few steps take."""
        started = time.perf_counter()
        step_seconds = trainer.seconds_per_step()
        left = seconds_left - (time.perf_counter() - started)
        steps = max(1, math.floor(left / step_seconds))
        self.reporter.say(
            f"train.minutes={self.config.train.minutes:g}: {step_seconds * 1e3:.1f} ms a step, {steps:,} steps"
        )
        trainer.choices = replace(trainer.choices, steps=steps)

    def _settle(self, trainer: Trainer, material: Material, kept: Choices | None) -> None:
        """Write the choices of a new run; hold a resumed one to its own, and put its state back."""
        if kept is not None:
            self._check_kept(kept, material.hashes)
            trainer.choices = replace(kept, steps=max(kept.steps, self.config.train.steps or 0))
            checkpoint = self.folder.checkpoints.load_newest(self.reporter.say)
            if checkpoint is None:
                trainer.log.cut(0)
                self.reporter.say("no checkpoint yet: starts at step 0")
            else:
                trainer.restore(checkpoint)
                self.reporter.say(f"resumed after step {trainer.state.step:,} of {trainer.choices.steps:,}")
        else:
            self.folder.clear()
        self.folder.write_record(self.run, self._records(trainer.choices, material))
        self.reporter.say(describe_choices(trainer.choices))

    def _check_kept(self, kept: Choices, hashes: dict[str, str]) -> None:
        then, path = self.folder.record.get("hashes", {}), self.folder.path
        changed = sorted(name for name in then.keys() | hashes.keys() if then.get(name) != hashes.get(name))
        if changed:
            raise CheckpointError(
                f"{path}: --resume with other contents than before: {', '.join(changed)}; put them back"
            )
        asked = self.config.train.steps
        if asked is not None and asked < kept.steps:
            raise CheckpointError(f"{path}: --resume with train.steps={asked}, fewer than the run's {kept.steps}")
        unkept = kept.unkept()
        if unkept and not self.options.inexact:
            raise CheckpointError(f"{path}: cannot go on exactly ({'; '.join(unkept)}); --inexact goes on all the same")
        if unkept:
            self.reporter.say(f"going on inexactly: {'; '.join(unkept)}")

    def _records(self, choices: Choices, material: Material) -> dict[str, dict[str, Any]]:
        versions = {name: metadata.version(name) for name in _RECORDED_VERSIONS}
        records: dict[str, dict[str, Any]] = {
            "hashes": material.hashes,
            "versions": {"nlpstack": __version__, "python": platform.python_version(), **versions},
            "choices": asdict(choices),
        }
        if material.start:
            records["start"] = {"model": material.start}
        if self.options.command:
            records["command"] = {"typed": self.options.command}
        inexact = choices.unkept() or self.folder.record.get("inexact", {}).get("changed", [])
        if inexact:
            records["inexact"] = {"changed": inexact}
        return records

    # -- after the last step -----------------------------------------------------------------------------------------

    def _write_model(self, trainer: Trainer, material: Material) -> None:
        state = trainer.state
        facts = {
            **shape_facts(trainer.model),
            "run": self.run.name,
            **material.facts,
            "steps": f"{state.step:,} of {trainer.choices.steps:,}",
            "tokens seen": f"{state.tokens:,}",
            **{f"val {name}": f"{value:.4f}" for name, value in state.val.items()},
        }
        save_model(trainer.model, self.folder.model, card=model_card(facts))

    def _finish(self, trainer: Trainer, material: Material) -> RunResult:
        """Write the model (with early stopping the best, else the last) and its scores, with intervals."""
        if self.config.train.patience or material.keep_best:
            trainer.take_best()
        self._check_frozen(trainer)
        self._write_model(trainer, material)
        state, task = trainer.state, trainer.task
        scores = evaluate(
            trainer.model, task, material.val, self.config.eval, device=trainer.device, dtype=trainer.choices.dtype
        )
        result = RunResult(
            out=str(self.folder.path),
            model=str(self.folder.model),
            steps=state.step,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            tokens_per_second=round(state.tokens / max(state.seconds, 1e-9), 1),
            val=finite({name: score.value for name, score in scores.items()}),
            seed=self.config.train.seed,
            parameters=count_parameters(trainer.model),
            weights=weights_hash(self.folder.model),
        )
        metrics = {name: finite(score._asdict()) for name, score in scores.items()}
        entry: dict[str, Any] = {
            "model": result.model,
            "task": task.name,
            "data": list(self.config.data.paths),
            "split": "val",
        }
        if baselines := material.baselines():
            entry["baselines"] = baselines
            for name, values in baselines.items():
                line = "  ".join(f"{metric} {value:.4f}" for metric, value in values.items())
                self.reporter.say(f"baseline {name}: {line}")
        self.folder.write_results({"results": [{**entry, "metrics": metrics}], "run": asdict(result)})
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
            folder = RunFolder(Path(scratch))
            Job(run=run, options=options, folder=folder, reporter=reporter, prepare=prepare).rehearse()
        return None
    with RunFolder.open(out, resume=resume, overwrite=overwrite) as folder:
        if folder.record:
            folder.check_unchanged(run)
        return Job(run=run, options=options, folder=folder, reporter=reporter, prepare=prepare).execute()


def count_parameters(model: nn.Module) -> int:
    """Weights of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def make_choices(
    config: RunConfig, model: LanguageModel, order: Order, *, seq_len: int, note: Callable[[str], None]
) -> Choices:
    """Settle everything that changes arithmetic, by fixed rules of hardware, versions, shapes and run length."""
    train = config.train
    device = runtime.resolve_device(train.device)
    exact = config.optim.full_batch and train.dtype == "auto"  # its line searches compare losses
    dtype = "fp32" if exact else runtime.resolve_dtype(train.dtype, device)
    if train.micro_batch > order.batch_size:
        raise ConfigError(
            f"train.micro_batch={train.micro_batch} is more than the {order.batch_size} sequences of a step"
        )
    steps = train.steps or order.n_steps(train.epochs or 0)
    seconds = (train.minutes or 0) * 60
    if not seconds:
        flops = 6.0 * count_parameters(model) * steps * order.batch_size * seq_len * config.optim.evaluations
        seconds = runtime.usual_seconds(device.type, dtype, flops)
    pays = not isinstance(order, Bucketed) and runtime.compile_pays(device.type, seconds)  # shapes that do not change
    wanted = pays if train.compile == "auto" else train.compile
    if wanted and not runtime.can_compile(device.type):
        note("torch.compile: no compiler on this machine, so the run is eager")
        wanted = False
    return Choices(
        steps=steps,
        device=str(device),
        dtype=dtype,
        compile=wanted,
        threads=torch.get_num_threads(),
        micro_batch=train.micro_batch or order.batch_size,
        attention=faster_in_training(device.type),
        loss_chunk=loss_chunk(model.config.vocab_size),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        processor=runtime.processor_name(device.type),
        torch=torch.__version__,
        nlpstack=__version__,
    )
