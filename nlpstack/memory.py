"""The bytes that training takes, told by a step on tensors that have shapes and no memory."""

import resource
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nlpstack.data.batch import Batch
from nlpstack.model import GPT, LanguageModel, TransformerConfig, twin
from nlpstack.model.losses import linear_cross_entropy, token_scores
from nlpstack.tasks import TaskConfig
from nlpstack.tasks.masked_lm import label_room, masked_loss
from nlpstack.train.optim import OptimConfig, make_optimizers
from nlpstack.train.run import RunConfig
from nlpstack.train.runtime import DTYPES, Choices, autocast, peak_memory

# A process that computes on a CPU keeps the memory it frees (runtime.keep_freed_memory), in pieces of which later
# blocks fit only some. A step holds about so many times what it uses; validation, whose blocks are of other sizes,
# several times its own, less the room it finds in what a step has freed. Fitted to the recipes gpt,
# shakespeare-char-cpu, llama-mini and shakespeare-char (glibc 2.36, torch 2.13, bf16, one thread) at two validation
# batches and three training batches, all met within 11 %. A GPU's figure is of what is in use.
_STEP_HELD, _VALIDATION_HELD, _ROOM = 1.4, 3.0, 0.6
_FIRST_USE = 56 << 20  # what the smallest of runs adds: kernels, threads, corpus and tokenizer; measured too


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of an eager run by what they are for; they are not all held at once, and `peak` is the most that are."""

    weights: Annotated[int, "fp32"]
    gradients: Annotated[int, "fp32; not held while activations are, but for micro-batches"]
    optimizer: Annotated[int, "its state"]
    activations: Annotated[int, "of a micro-batch, kept for the backward pass"]
    workspace: Annotated[int, "for a moment: logits of a chunk, gradients in a block"]
    validation: Annotated[int, "of one of its batches, which keep nothing for a backward pass"]
    process: Annotated[int, "Python, torch and libraries; not on a GPU, whose memory they do not take"]
    allocator: Annotated[int, "freed and not used again at the peak; not on a GPU"]
    peak: Annotated[int, "the most that is held at once"]


def kv_cache_bytes(config: TransformerConfig, dtype: str = "fp32") -> int:
    """Bytes of keys and values that decoding keeps a token of a sequence; heads that share them count once."""
    return 2 * config.n_layers * config.kv_heads * config.head_dim * DTYPES[dtype].itemsize


def _current_memory() -> int:
    """Bytes this process holds now; without /proc, the most it has held."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory(torch.device("cpu"))


def optimizer_bytes(model: LanguageModel, optim: OptimConfig) -> int:
    """Bytes of the optimizer's state from its first step on, of L-BFGS once its history is full."""
    if optim.history is not None:  # L-BFGS, whose step asks for numbers
        # Two vectors a pair; the direction and the last gradient; the weights before the step, here and in torch.
        return (2 * optim.history + 4) * sum(parameter.nbytes for parameter in model.parameters())
    copied, n_bytes = twin(model, "meta"), 0
    for parameter in copied.parameters():
        parameter.grad = torch.empty_like(parameter)
    for optimizer in make_optimizers(copied, optim):
        optimizer.step()
        n_bytes += sum(value.nbytes for value in tree_leaves(optimizer.state) if isinstance(value, Tensor))
    return n_bytes


class _Live(TorchDispatchMode):
    """While it is entered, counts the bytes of what operations make: `now`, and at `peak`; weights do not count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in [tensor.untyped_storage() for tensor in tree_leaves(made) if isinstance(tensor, Tensor)]:
            if storage._cdata not in self._known:  # else made as a view, or in place
                self._change(storage._cdata, storage.nbytes())
                weakref.finalize(storage, self._change, storage._cdata, -storage.nbytes())
        return made

    def _change(self, storage: int, n_bytes: int) -> None:
        self._known ^= {storage}
        self.now += n_bytes
        self.peak = max(self.peak, self.now)


def _run(model: LanguageModel, task: TaskConfig, n_rows: int, length: int, chunk: int) -> tuple[Batch, Tensor]:
    """A batch of zeros as the model's task shapes it, and its loss; outside training mode the loss of each label."""
    tokens = torch.zeros(n_rows, length, dtype=torch.int64)
    if isinstance(model, GPT):
        batch = Batch(tokens=tokens, labels={"lm": torch.zeros_like(tokens)})
        hidden, labels = model.transformer(tokens), batch.labels["lm"]
        if not model.training:
            return batch, token_scores(hidden, model.unembedding, labels, chunk, ranked=False)[0]
        # The loss holds no more after its second chunk than after its last, and a large batch has hundreds.
        return batch, linear_cross_entropy(hidden, model.unembedding, labels.flatten()[: 3 * chunk], chunk)
    pairs = task.nsp or model.mlm_head is None  # which seldom fill their rows, as examples with labels
    mask, segments = (tokens == 0, torch.zeros_like(tokens)) if pairs else (None, None)
    if model.mlm_head is None:
        logits = model.label_logits(model(tokens, mask=mask, segments=segments)).float().flatten(0, -2)  # (N, C)
        labels = tokens.new_zeros(len(logits))
        batch = Batch(tokens=tokens, labels={"labels": labels}, mask=mask, segments=segments)
        return batch, F.cross_entropy(logits, labels, reduction="sum" if model.training else "none")
    places = tokens.new_zeros(label_room(n_rows, length, task.mask_share, whole_words=task.whole_words))
    given = {"mlm": torch.zeros_like(places), **({"nsp": tokens.new_zeros(n_rows)} if task.nsp else {})}
    batch = Batch(tokens=tokens, labels=given, places=places, mask=mask, segments=segments)
    if model.training:
        return batch, torch.stack([*masked_loss(model, batch, chunk).values()]).sum()
    hidden = model(tokens, mask=mask, segments=segments)
    states = model.mlm_head(hidden.flatten(0, 1).index_select(0, places))
    return batch, token_scores(states, model.unembedding, given["mlm"], chunk, model.mlm_head.bias)[0]


def _measure(model: LanguageModel, config: RunConfig, choices: Choices) -> tuple[int, int, int]:
    """Bytes beside the weights: kept by a forward pass, the most with the backward pass, the most in validation."""
    # torch does all that it does in a run, but on tensors without numbers. Without CUDA it cannot even feign that
    # device: the CPU's kernels stand in, which keep about as much.
    name = choices.device if torch.cuda.is_available() else "cpu"
    length, chunk = model.config.max_seq_len, choices.loss_chunk
    evaluation, window = config.eval, config.eval.window or length
    limit = (evaluation.max_tokens if model.config.causal else 0) or evaluation.batch_tokens
    n_scored = max(1, min(limit, evaluation.batch_tokens) // window)
    with FakeTensorMode(), torch.device(name) as device:
        copied = twin(model, name).train()
        copied.transformer.train_attention = choices.attention
        copied.transformer.checkpoint_activations = config.train.activation_checkpointing
        with _Live(copied) as step:
            with autocast(device, choices.dtype):
                _batch, loss = _run(copied, config.task, choices.micro_batch, length, chunk)  # a run holds the batch
            kept = step.now
            loss.backward()
        # Not in inference mode, whose operations on fake tensors are wholes that do not show what they hold.
        with _Live(copied.eval().requires_grad_(False)) as validation, autocast(device, choices.dtype):
            _run(copied, config.task, n_scored, window, chunk)
    return kept, step.peak, validation.peak


def estimate_memory(model: LanguageModel, config: RunConfig, choices: Choices, *, batch_size: int) -> MemoryEstimate:
    """What an eager run takes (a compiled one keeps less) of `batch_size` sequences a step; a model on meta will do."""
    on_cpu = torch.device(choices.device).type == "cpu"
    own = sum(part.nbytes for part in model.parameters() if part.device.type == "cpu")
    process = _current_memory() - own if on_cpu else 0
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer = optimizer_bytes(model, config.optim)
    activations, most, validation = _measure(model, config, choices)
    # Gradients grow as activations go, unless those of earlier micro-batches are already there.
    step = max(trained, most + (trained if choices.micro_batch < batch_size else 0))
    held = used = weights + optimizer + max(step, trained + validation)
    if on_cpu:
        beside = max(0.0, _VALIDATION_HELD * validation - _ROOM * step)
        held = max(used, round(_STEP_HELD * (weights + optimizer + step) + beside)) + _FIRST_USE
    beside_weights = trained, optimizer, activations, most - activations, validation
    return MemoryEstimate(weights, *beside_weights, process, allocator=held - used, peak=process + held)


def describe_memory(estimate: MemoryEstimate) -> str:
    """The estimate as one line, in MiB."""
    parts = [f"{name} {size / 2**20:,.1f}" for name, size in vars(estimate).items() if name != "peak" and size]
    return f"memory: about {estimate.peak / 2**20:,.0f} MiB at its peak, not compiled ({', '.join(parts)})"
