"""The training loop: accumulate, clip, step, validate, save. Knows no text, no labels, no command line."""

import gc
import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain, islice, repeat
from typing import Any, cast

import torch
from torch import Tensor, nn

from nlpstack.config import checked
from nlpstack.data.batch import Batch, Bucketed, Loader
from nlpstack.decode.loop import evaluating
from nlpstack.errors import CheckpointError, ConfigError, TrainingError, some
from nlpstack.metrics import Metric, Score, compute, lower_is_better
from nlpstack.model import LanguageModel
from nlpstack.model.lora import trainable_state
from nlpstack.signals import StopSignal
from nlpstack.tasks import EvalConfig, Task
from nlpstack.train import runtime
from nlpstack.train.checkpoint import Checkpoint, Checkpoints, optimizer_state, restore_optimizers
from nlpstack.train.optim import OptimConfig, learning_rate, line_search_step, make_optimizers
from nlpstack.train.parallel import Parallel, in_step, whole
from nlpstack.train.run import MetricsLog, Reporter, TrainConfig
from nlpstack.train.runtime import Choices, autocast

Tick = Callable[[int], None]
FIRST_LOSS_MARGIN = 0.5  # nats
FP16_SKIPS = 20  # fp16 finds its loss scale by overflowing a few times


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did."""

    step: int  # steps done, this one included
    losses: dict[str, float]  # mean loss a target, in nats, by term
    lr: float
    grad_norm: float  # before clipping
    n_tokens: int
    skipped: bool  # loss, gradient or new weights were not finite, and the weights stayed as they were

    @property
    def loss(self) -> float:
        """The sum of all terms."""
        return sum(self.losses.values())


@dataclass(kw_only=True)
class TrainState:
    """How far a run is; all of it is in the checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training steps, over all resumes
    skips: int = 0  # in a row
    best: float | None = None  # of the score that is watched
    best_step: int | None = None
    n_worse: int = 0  # validations since the best
    val: dict[str, float] = field(default_factory=dict)  # the last validation's scores


@dataclass(kw_only=True)
class Trainer:
    """Steps a model on a task. `steps()` yields a report each; `train()` also logs, validates, saves and stops."""

    model: LanguageModel
    task: Task
    loader: Loader
    config: TrainConfig
    optim: OptimConfig
    choices: Choices
    checkpoints: Checkpoints
    log: MetricsLog
    reporter: Reporter
    validate: Callable[[], dict[str, Any]]  # {"val": name -> number, "samples": [...]}
    expected_first_loss: float | None = None  # nats, of fresh weights
    stop: StopSignal = field(default_factory=StopSignal)
    state: TrainState = field(default_factory=TrainState)

    def __post_init__(self) -> None:
        self.device = torch.device(self.choices.device)
        n_all, n_step = self.loader.order.n_examples, self.loader.order.batch_size
        if self.optim.full_batch and n_step != n_all:
            fault = f"optim.name={self.optim.name} takes all {n_all} training sequences at each step, not {n_step}"
            raise ConfigError(f"{fault}; set train.batch_size={n_all} (train.micro_batch saves memory)")
        self.parallel = Parallel(self.model, self.config.parallel, self.device)
        self.optimizers = make_optimizers(self.model, self.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.choices.dtype == "fp16")
        self.frozen_hash = frozen_hash(self.model)
        # Only the training loss is compiled: validation stays the arithmetic of `eval`.
        self._run_loss = torch.compile(self.task.loss, dynamic=False) if self.choices.compile else self.task.loss
        self._peak_flops = 0.0

    def steps(self) -> Iterator[StepReport]:
        """Train from where the state stands to the last step, yielding a report after each."""
        self.model.train()
        batches = self.loader.steps(self.state.step, self.choices.steps, pin=self.device.type == "cuda")
        if self.optim.full_batch:  # the same blocks at every step: an epoch cut at other places has another loss
            batches = repeat(self.loader.micro_batches(0), self.choices.steps - self.state.step)
        for number, micro_batches in enumerate(batches):
            started = time.perf_counter()
            report = self._step(micro_batches)
            if self.choices.compile and number == 0:
                gc.collect()  # what compiling leaves, hundreds of MiB (benchmarks/RESULTS.md)
            self.state.step += 1
            self.state.tokens += report.n_tokens
            self.state.seconds += time.perf_counter() - started
            yield report

    def seconds_per_step(self, n_timed: int = 5) -> float:
        """How long a step takes, from gradients alone: nothing is updated, and no generator moves."""
        self.model.train()
        batches = self.loader.micro_batches(0)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.accumulate(batches)  # compiles, and fills caches
            started = time.perf_counter()
            for _ in range(n_timed):
                torch.stack([*self.accumulate(batches).values()]).tolist()  # waits for the device
            seconds = (time.perf_counter() - started) / n_timed
        self.model.zero_grad()
        return seconds * self.optim.evaluations

    def accumulate(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """Add up gradients of the mean loss over all targets of the step; the mean of each term comes back."""
        names = sorted(micro_batches[0].n_targets)
        n_targets = runtime.summed([sum(batch.n_targets[name] for batch in micro_batches) for name in names]).tolist()
        totals = {name: max(1, n) for name, n in zip(names, n_targets, strict=True)}
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches, 1):
            on_device = replace(batch.to(self.device), n_targets={})  # counts would be constants of the compiled code
            with runtime.autocast(self.device, self.choices.dtype):
                terms = self.parallel(self._run_loss, on_device, last=number == len(micro_batches))
            objective = torch.stack([value / totals[name] for name, value in terms.items()]).sum()
            counts = 0 if batch.idle else 1
            self.scaler.scale(objective * (counts * runtime.world_size())).backward()  # which processes average
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * counts
        return dict(zip(sums, runtime.summed(torch.stack([sums[name] / totals[name] for name in sums])), strict=True))

    def _step(self, micro_batches: list[Batch]) -> StepReport:
        lr = learning_rate(self.optim, self.state.step, self.choices.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_share", 1.0)
        self.model.zero_grad()
        means = self.accumulate(micro_batches)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        *values, size = torch.stack([*means.values(), whole(norm)]).tolist()  # the step's only wait for the device
        if self.optim.clip and size > 0.999 * self.optim.clip:  # else every gradient would be multiplied by 1
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.optim.clip, norm)
        updated = all(map(math.isfinite, (*values, size))) and self._update(sum(values), micro_batches)
        self.scaler.update()
        step, losses = self.state.step + 1, dict(zip(means, values, strict=True))
        n_tokens = int(runtime.summed([sum(batch.n_tokens for batch in micro_batches)]))
        report = StepReport(step=step, losses=losses, lr=lr, grad_norm=size, n_tokens=n_tokens, skipped=not updated)
        self._guard(report)
        return report

    def _update(self, loss: float, micro_batches: list[Batch]) -> bool:
        """Change the weights by the gradients that stand; whether they came out finite."""

        def evaluate() -> float:
            self.model.zero_grad()
            return sum(value.item() for value in self.accumulate(micro_batches).values())

        if self.optim.full_batch:
            return line_search_step(self.optimizers[0], loss, evaluate)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        return True

    def _guard(self, report: StepReport) -> None:
        """Stop after too many steps that are not finite; warn of a first loss that is not that of fresh weights."""
        expected = self.expected_first_loss
        if report.step == 1 and expected is not None and abs(report.loss - expected) > FIRST_LOSS_MARGIN:
            self.reporter.say(f"warning: the first loss is {report.loss:.3f}; fresh weights should give {expected:.3f}")
        self.state.skips = self.state.skips + 1 if report.skipped else 0
        if not report.skipped:
            return
        examples = self.loader.order.step(0 if self.optim.full_batch else self.state.step)
        where = f"step {report.step}: loss {report.loss}, gradient norm {report.grad_norm}, "
        where += f"batch of epoch {examples[0][0]}, blocks {[index for _, index in examples[:4]]}..."
        fault = "new weights not finite" if all(map(math.isfinite, (report.loss, report.grad_norm))) else "not finite"
        allowed = FP16_SKIPS if self.choices.dtype == "fp16" else self.config.max_skips
        if self.state.skips > allowed:
            cure = "the last checkpoint stands. Lower optim.lr, raise optim.warmup, or use train.dtype=fp32"
            raise TrainingError(f"{where}: {fault} {self.state.skips} times in a row; {cure}")
        self.reporter.say(f"{where}: {fault}, step skipped ({self.state.skips} of at most {allowed} in a row)")

    def train(self) -> None:
        """Run to the last step, or to early stopping; raises Stopped after saving if a signal asked for it."""
        if self._stops_early():
            return  # killed after the last validation, before the model was written
        with self.stop.deferred(), closing(self.reporter):
            for report in self.steps():
                last = report.step == self.choices.steps
                if last or report.step == 1 or _due(report.step, self.config.log_every):
                    self._log_step(report)
                improved = (last or _due(report.step, self.config.val_every)) and self._validate()
                early = self._stops_early()
                stopping = bool(runtime.summed([int(self.stop.signum is not None)]))
                if last or early or improved or stopping or _due(report.step, self.config.checkpoint_every):
                    self.save()
                if early and not last:
                    self.reporter.say(f"stopped early: {self.state.n_worse} validations without a better one")
                    break
                if stopping and not last:
                    self.stop.stop(self.stop.signum or signal.SIGTERM, str(self.checkpoints.path(report.step)))

    def _stops_early(self) -> bool:
        return bool(self.config.patience) and self.state.n_worse >= self.config.patience

    def take_best(self) -> None:
        """Put the weights of the best validation in place of the last ones."""
        best = self.state.best_step
        if best is not None and best != self.state.step:
            self._load(self.checkpoints.load(best, trainable_state(self.model)).model)
            self.reporter.say(f"the model is that of step {best}, whose validation was the best")

    def _log_step(self, report: StepReport) -> None:
        if runtime.rank():
            return
        speed = self.state.tokens / max(self.state.seconds, 1e-9)
        if not self._peak_flops:
            self._peak_flops, source = runtime.peak_flops(self.device, self.choices.dtype)
            self.reporter.say(f"utilisation is of {self._peak_flops / 1e12:.3g} TFLOP/s ({source})")
        length = float(order.lengths.mean()) if isinstance(order := self.loader.order, Bucketed) else 0.0
        flops = flops_per_token(self.model, predicted=self.task.predicted_share, length=length)["training"]
        utilisation = round(speed * flops / (self._peak_flops * runtime.world_size()), 4)
        memory = runtime.peak_memory(self.device)
        terms = {f"{name}_loss": value for name, value in report.losses.items()} if len(report.losses) > 1 else {}
        record = {"step": report.step, "loss": report.loss, **terms, "lr": report.lr, "grad_norm": report.grad_norm}
        record |= {"tokens": self.state.tokens, "tokens_per_second": round(speed, 1), "utilisation": utilisation}
        self.log.write({**record, "memory_bytes": memory, "seconds": round(self.state.seconds, 3)})
        text = f"loss {report.loss:.4f}  lr {report.lr:.2e}  |g| {report.grad_norm:.2f}"
        text += f"  {speed:,.0f} tok/s  mfu {utilisation:.0%}  {memory / 2**30:.2f} GiB"
        self.reporter.say(f"step {report.step:>{len(str(self.choices.steps))}}/{self.choices.steps}  {text}")
        self.reporter.progress(report.step, self.choices.steps, f"loss {report.loss:.3f}")

    def _validate(self) -> bool:
        """Score the validation split; whether it is the best so far."""
        # Of several processes the first one's, so that the last digits of a GPU cannot make them go different ways.
        found = runtime.gathered(self.parallel.look(lambda _: self.validate()))[0]
        self.state.val = found["val"]
        if not runtime.rank():
            self.log.write({"step": self.state.step, **found})
        score = found["val"][self.task.target]
        better = self.state.best is None or (score < self.state.best) == lower_is_better(self.task.target)
        improved = math.isfinite(score) and score != self.state.best and better
        self.state.n_worse += 1
        if improved:
            self.state.best, self.state.best_step, self.state.n_worse = score, self.state.step, 0
        line = "  ".join(f"{name} {value:.4f}" for name, value in found["val"].items())
        self.reporter.say(f"val   {self.state.step}/{self.choices.steps}  {line}")
        for sample in found.get("samples", []):
            self.reporter.say(f"      {sample['prompt']!r} -> {sample['text']!r}")
        return improved

    def save(self) -> None:
        """Write a checkpoint of everything."""
        tensors, numbers = optimizer_state(self.model, self.optimizers)
        rng = runtime.gathered(runtime.rng_state(self.device))  # of each process
        state = {**vars(self.state), "optimizer": numbers, "rng": rng, "scaler": self.scaler.state_dict()}
        state["log_bytes"] = 0 if runtime.rank() else self.log.sync()
        self.checkpoints.save(Checkpoint(trainable_state(self.model), tensors, state), best_step=self.state.best_step)

    def _load(self, tensors: dict[str, Tensor]) -> None:
        if wrong := sorted(tensors.keys() ^ trainable_state(self.model).keys()):
            raise CheckpointError(f"the checkpoint holds other weights than those that train: {some(wrong)}")
        self.model.load_state_dict(tensors, strict=False)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint as if never stopped."""
        state = dict(checkpoint.state)
        self.state = checked(TrainState, state, f"{self.checkpoints.folder}: state.json", CheckpointError)
        try:
            self._load(checkpoint.model)
            restore_optimizers(self.model, self.optimizers, checkpoint.optimizer, state.get("optimizer", {}))
            runtime.set_rng_state(state["rng"][runtime.rank() % len(state["rng"])], self.device)
            self.scaler.load_state_dict(state["scaler"])
            self.log.cut(state["log_bytes"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
            fault = f"a checkpoint that does not fit the run ({type(error).__name__}: {error})"
            raise CheckpointError(f"{self.checkpoints.folder}: {fault}; an older one or --overwrite will do") from error


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def frozen_hash(model: nn.Module) -> str:
    """SHA-256 over the names and values of the weights that do not train."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(whole(parameter.detach()).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def flops_per_token(model: LanguageModel, *, predicted: float = 1.0, length: float = 0.0) -> dict[str, int]:
    """FLOPs a token of the `forward` pass and of `training` (Chowdhery et al. 2022, PaLM, appendix B).

    Forward: 2 a weight that multiplies, and attention over `length` tokens, 0: the whole context; training: three times
    that. `predicted`: the share of tokens whose word is scored, of a BERT those hidden; [CLS]'s own are left out.
    """
    config = model.config
    scoring = predicted * config.dim * (config.vocab_size + (0 if config.causal else config.dim))
    blocks = sum(p.numel() for p in model.transformer.blocks.parameters() if p.dim() == 2)
    forward = round(2 * (blocks + scoring) + 4 * config.n_layers * config.dim * (length or config.max_seq_len))
    return {"forward": forward, "training": 3 * forward}


def measure(
    model: nn.Module, task: Task, data: object, config: EvalConfig, *, dtype: str, tick: Tick = lambda _: None
) -> Metric:
    """The metric of a task, filled with all of its data, the model left in its mode; `tick` gets the batches done."""
    metric, device, done = task.metric(config), next(model.parameters()).device, 0
    own, size = (0, 1) if in_step(model) else (runtime.rank(), runtime.world_size())
    batches = iter(task.eval_batches(model, data, config))
    with evaluating(model), torch.inference_mode(), autocast(device, dtype):
        while some := list(islice(batches, size)):  # one for each process, each of which counts what all have scored
            counted: Any = metric if size == 1 else _Counted([])
            for batch in some[own : own + 1]:
                task.score(model, batch.to(device), counted)
            for path, given, named in chain.from_iterable(runtime.gathered(counted.calls)) if size > 1 else ():
                reduce(getattr, path, cast(Any, metric))(*given, **named)
            done += len(some)
            tick(done)
    return metric


class _Counted:
    """In place of a metric: what is counted, as calls of its methods."""

    def __init__(self, calls: list[Any], path: tuple[str, ...] = ()) -> None:
        self.calls, self._path = calls, path

    def __getattr__(self, name: str) -> "_Counted":
        return _Counted(self.calls, (*self._path, name))

    def __call__(self, *given: Any, **named: Any) -> None:
        self.calls.append((self._path, given, named))


def evaluate(model: nn.Module, task: Task, data: object, config: EvalConfig, *, dtype: str) -> dict[str, Score]:
    """Every score of a model on a task's data."""
    signature = task.signature(model, config, dtype)  # first: it refuses what cannot be scored
    metric = measure(model, task, data, config, dtype=dtype)
    return compute(metric, signature, n_resamples=config.resamples, seed=config.seed)
