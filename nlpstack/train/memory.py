"""What training takes: FLOPs a token, and bytes, told from shapes before anything is computed.

The formulas name what autograd keeps of each module of model/transformer.py, in eager mode; tests count it.
"""

import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nlpstack.model import GPT, TransformerConfig
from nlpstack.model.meta import on_meta
from nlpstack.tasks import EvalConfig
from nlpstack.train.optim import OptimConfig, make_optimizers
from nlpstack.train.run import RunConfig
from nlpstack.train.runtime import DTYPES, Choices

# A process that computes on a CPU keeps the memory it frees (runtime.keep_freed_memory), in pieces of which later
# blocks fit only some: more is held than is in use. A step holds about so many times what it uses. Validation, whose
# blocks are of other sizes, holds several times its own, less the room it finds in what a step has freed. Fitted to the
# recipes gpt, shakespeare-char-cpu, llama-mini and shakespeare-char (glibc 2.36, torch 2.13, bf16, one thread) at two
# validation batches and three training batches, all met within 11 %. A GPU's figure is of what is in use.
_STEP_HELD, _VALIDATION_HELD, _ROOM = 1.4, 3.0, 0.6
# What the smallest of runs adds to the process: kernels made at first use, threads, corpus and tokenizer. Measured too.
_FIRST_USE = 32 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of an eager run by what they are for; they are not all held at once, and `peak` is the most that are."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # of one micro-batch, kept for the backward pass
    workspace: int  # beside them for a moment: logits of a chunk, gradients inside a block
    validation: int  # of one batch, which keeps nothing for a backward pass
    process: int  # a CPU run's interpreter and libraries; 0 on a GPU, whose memory they do not take
    allocator: int  # a CPU run's freed and not used again at the peak
    peak: int


def flops_per_token(model: GPT) -> dict[str, int]:
    """FLOPs a token of the `forward` pass and of `training` (Chowdhery et al. 2022, PaLM, appendix B).

    Forward: 2 a weight that multiplies, and attention over the whole context; training: three times that.
    """
    config = model.config
    products = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "positions" not in name)
    lookup = 0 if config.tied else config.vocab_size * config.dim
    forward = 2 * (products - lookup) + 4 * config.n_layers * config.dim * config.max_seq_len
    return {"forward": forward, "training": 3 * forward}


def kv_cache_bytes(config: TransformerConfig, dtype: str = "fp32") -> int:
    """Bytes of keys and values that decoding keeps a token of a sequence; heads that share them count once."""
    return 2 * config.n_layers * config.kv_heads * config.head_dim * DTYPES[dtype].itemsize


def current_memory() -> int:
    """Bytes this process holds now; without /proc, the most it has held."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def optimizer_bytes(shape: TransformerConfig, optim: OptimConfig) -> int:
    """Bytes of the optimizer's state from its first step on, of L-BFGS once its history is full.

    The optimizers themselves say it, of weights that have shapes and no memory.
    """
    with on_meta():
        model = GPT(shape)
    if optim.history is not None:  # L-BFGS, whose step asks for numbers
        # Two vectors a pair; the direction and the last gradient; the weights before the step, here and in torch.
        return (2 * optim.history + 4) * sum(parameter.nbytes for parameter in model.parameters())
    n_bytes = 0
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    for optimizer in make_optimizers(model, optim):
        optimizer.step()
        values = (value for entries in optimizer.state.values() for value in entries.values())
        n_bytes += sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    return n_bytes


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """Sizes of one pass through the model, of `batch` sequences of `length` tokens."""

    config: TransformerConfig
    batch: int
    length: int
    choices: Choices

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def product(self) -> int:
        """Bytes of a number that products make."""
        return DTYPES[self.choices.dtype].itemsize

    @property
    def mixed(self) -> bool:
        """Products in another dtype than the weights, which are fp32."""
        return self.product < 4

    @property
    def hidden(self) -> int:
        """Bytes of the hidden states in fp32."""
        return 4 * self.tokens * self.config.dim

    @property
    def copy(self) -> int:
        """Bytes of the hidden states as products make them."""
        return self.product * self.tokens * self.config.dim

    @property
    def wide(self) -> int:
        """Bytes of one tensor inside the feed-forward layer."""
        return self.product * self.tokens * self.config.hidden_dim

    @property
    def scores(self) -> int:
        """How many attention scores one block has."""
        return self.batch * self.config.n_heads * self.length**2

    @property
    def on_cpu(self) -> bool:
        return torch.device(self.choices.device).type == "cpu"

    def dropped(self, size: int, itemsize: int) -> int:
        """Bytes of the mask of a dropout over `size` numbers: on a CPU in their own dtype, elsewhere bools."""
        return size * (itemsize if self.on_cpu else 1) if self.config.dropout else 0

    def norm(self) -> int:
        """Bytes that a norm keeps: its input, its statistics, and RMSNorm on a CPU also what it has normalised."""
        if self.config.norm == "rmsnorm":
            return self.hidden * (2 if self.on_cpu else 1) + 4 * self.tokens
        return self.hidden + 8 * self.tokens

    def attention(self) -> int:
        """Bytes that the product of queries, keys and values keeps, its output included."""
        kept = 4 * self.copy  # queries, keys and values, each of all heads; the output
        if self.choices.attention == "fused":
            return kept + 4 * self.batch * self.config.n_heads * self.length
        kept += 4 * self.scores + (self.length**2 if self.config.causal else 0)  # the softmax; what is not allowed
        kept += self.product * self.scores if self.mixed or self.config.dropout else 0  # as the second product takes it
        return kept + self.dropped(self.scores, self.product)

    def feed_forward(self) -> int:
        """Bytes that the feed-forward layer keeps, but for its input."""
        return {"swiglu": 4, "relu": 1}.get(self.config.activation, 2) * self.wide

    def feed_forward_half(self) -> int:
        """Bytes that the second half of a block keeps."""
        # Under autocast each linear layer keeps its own copy of its input; without, they share the norm's output.
        gated = self.config.activation == "swiglu"
        inputs = (1 + gated) * self.copy if self.mixed else self.hidden
        return self.norm() + inputs + self.feed_forward() + self.dropped(self.tokens * self.config.dim, self.product)

    def block(self) -> int:
        """Bytes that a block keeps."""
        inputs = 3 * self.copy if self.mixed else self.hidden
        first_half = self.norm() + inputs + self.attention() + self.dropped(self.tokens * self.config.dim, self.product)
        return first_half + self.feed_forward_half()

    def block_gradients(self) -> int:
        """Bytes that the backward pass adds at its worst moment in a block, less those it has freed there by then."""
        wide = (1 if self.config.activation.startswith("gelu") else 2) * self.wide
        scores = 0  # the softmax's gradients, in and out; the second half and what the product took are freed
        if self.choices.attention == "plain":
            taken = self.product * self.scores if self.mixed or self.config.dropout else 0
            scores = 8 * self.scores - taken - self.feed_forward_half()
        return self.hidden + max(wide, scores)

    def head(self) -> int:
        """Bytes kept before and after the blocks: token ids and labels, embedding, last norm, the loss's gradients."""
        table = 4 * self.config.vocab_size * self.config.dim
        return 16 * self.tokens + self.dropped(self.tokens * self.config.dim, 4) + self.norm() + self.copy + table

    def loss(self) -> int:
        """Bytes that the loss uses for a moment: the logits of a chunk several times over, and its operands."""
        rows = min(self.choices.loss_chunk, self.tokens)
        # losses.py: logits, log-probabilities, slope (old and new) in fp32; the slope again as the product takes it.
        a_logit = 18 if self.mixed else 20 if rows < self.tokens else 16
        return a_logit * rows * self.config.vocab_size + self._operands()

    def _operands(self) -> int:
        """Bytes of what the logits are made of, beside the weights: hidden states, and both as products take them."""
        casts = self.copy + self.product * self.config.vocab_size * self.config.dim
        return self.hidden + (casts if self.mixed else 0)

    def validation(self) -> int:
        """Bytes of a pass without gradients at its worst moment: inside a block, or in the loss."""
        # A block's input, the sum after its attention and its norm; then the feed-forward layer or the attention.
        wide = (3 if self.config.activation == "swiglu" else 2) * self.wide
        block = 3 * self.hidden + max(wide, 4 * self.copy)
        return max(block, self._operands() + 8 * min(self.choices.loss_chunk, self.tokens) * self.config.vocab_size)


def _validation(sizes: _Pass, evaluation: EvalConfig) -> int:
    """Bytes of one of validation's batches."""
    window = evaluation.window or sizes.config.max_seq_len
    rows = max(1, min(evaluation.batch_tokens, evaluation.max_tokens or evaluation.batch_tokens) // window)
    return replace(sizes, batch=rows, length=window).validation()


def estimate_memory(
    model: GPT, config: RunConfig, choices: Choices, *, batch_size: int, process: int
) -> MemoryEstimate:
    """What an eager run takes with its choices; `process` is what its process holds without it, 0 on a GPU.

    `model` may stand on the meta device; `batch_size` is in sequences. A compiled run keeps less for the backward pass.
    """
    sizes = _Pass(config=model.config, batch=choices.micro_batch, length=model.config.max_seq_len, choices=choices)
    layers = model.config.n_layers
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    matrices = sum(p.numel() for p in model.transformer.blocks.parameters() if p.dim() == 2)
    casts = sizes.product * matrices if sizes.mixed else 0  # autocast keeps each matrix as its products take it
    if config.train.activation_checkpointing:
        activations = layers * sizes.hidden + sizes.head()
        workspace = max(sizes.loss() + casts, sizes.block() + casts // layers + sizes.block_gradients())
    else:
        activations = layers * sizes.block() + casts + sizes.head()
        workspace = max(sizes.loss(), sizes.block_gradients())
    optimizer = optimizer_bytes(model.config, config.optim)
    # Gradients grow as activations go, unless those of earlier micro-batches are already there.
    accumulates = choices.micro_batch < batch_size
    step = max(activations + workspace + (trained if accumulates else 0), trained)
    validation = _validation(sizes, config.eval)
    used = weights + optimizer + max(step, trained + validation)
    if not sizes.on_cpu:
        held, process = used, 0
    else:
        beside = max(0.0, _VALIDATION_HELD * validation - _ROOM * step)
        held = max(used, round(_STEP_HELD * (weights + optimizer + step) + beside)) + _FIRST_USE
    return MemoryEstimate(
        weights=weights,
        gradients=trained,
        optimizer=optimizer,
        activations=activations,
        workspace=workspace,
        validation=validation,
        process=process,
        allocator=held - used,
        peak=process + held,
    )


def describe_memory(estimate: MemoryEstimate) -> str:
    """The estimate as one line, in MiB."""
    parts = [f"{name} {size / 2**20:,.1f}" for name, size in vars(estimate).items() if name != "peak" and size]
    return f"memory: about {estimate.peak / 2**20:,.0f} MiB at its peak, not compiled ({', '.join(parts)})"
