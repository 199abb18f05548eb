"""What training is said to take, against what torch holds and what runs log."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nlpstack.job import make_choices
from nlpstack.model import GPT, KVCache, TransformerConfig
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_nll
from nlpstack.tasks import EvalConfig
from nlpstack.train.memory import MemoryEstimate, estimate_memory, flops_per_token, kv_cache_bytes, optimizer_bytes
from nlpstack.train.optim import OptimConfig, make_optimizers
from nlpstack.train.run import RunConfig, load_run
from nlpstack.train.runtime import Choices

GPT_LIKE = {"vocab_size": 500, "max_seq_len": 64, "dim": 64, "n_layers": 2, "n_heads": 4}
LLAMA_LIKE = {
    **GPT_LIKE,
    **{"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "n_kv_heads": 2, "ffn_dim": 176},
    **{"bias": False, "tied": False},
}
SHAPES = {
    "gpt": GPT_LIKE,
    "llama": LLAMA_LIKE,
    "dropout": {**GPT_LIKE, "dropout": 0.1},
    "relu": {**GPT_LIKE, "activation": "relu"},
    "post-norm": {**GPT_LIKE, "pre_norm": False},
}
BATCH = 4


def settled(shape: TransformerConfig, **values: object) -> tuple[RunConfig, Choices]:
    """A run of a shape and the choices it makes on this machine's CPU, some of them given."""
    config = replace(load_run("gpt", "pretrain", {"train.device": "cpu"}, []).config, model=shape)
    train = {name: values.pop(name) for name in ("activation_checkpointing",) if name in values}
    config = replace(config, train=replace(config.train, **train), eval=EvalConfig(batch_tokens=1024))
    choices = make_choices(config, GPT(shape), BATCH, n_examples=0, note=lambda _: None)
    return config, replace(choices, **{"micro_batch": BATCH, **values})


def estimated(shape: TransformerConfig, **values: object) -> MemoryEstimate:
    config, choices = settled(shape, **values)
    return estimate_memory(GPT(shape), config, choices, batch_size=BATCH, process=0)


def ready(shape: TransformerConfig, *, attention: str, checkpointing: bool = False) -> GPT:
    model = GPT.create(shape, seed=0).train()
    model.transformer.train_attention = attention
    model.transformer.checkpoint_activations = checkpointing
    return model


def loss(model: GPT, dtype: str, chunk: int) -> torch.Tensor:
    shape = (BATCH, model.config.max_seq_len)
    tokens, labels = (torch.randint(model.config.vocab_size, shape) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        return linear_cross_entropy(model.transformer(tokens), model.unembedding, labels, chunk)


def kept_for_backward(model: GPT, dtype: str) -> int:
    """Bytes of all storages that autograd keeps, but for the weights."""
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, dtype, loss_chunk(model.config.vocab_size))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for place, size in storages.items() if place not in weights)


def most_held(work: Callable[[], object], folder: Path) -> int:
    """The most bytes that tensors made by `work` take at one time, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate(change for _, change in changes))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_what_autograd_keeps(name: str, dtype: str) -> None:
    shape = TransformerConfig(**SHAPES[name])
    for attention in ("plain", "fused") if name in ("gpt", "relu", "post-norm") else ("plain",):
        kept = kept_for_backward(ready(shape, attention=attention), dtype)
        said = estimated(shape, dtype=dtype, attention=attention)
        assert said.activations == pytest.approx(kept, rel=0.01)


def test_checkpointed_activations_are_what_autograd_keeps() -> None:
    shape = TransformerConfig(**GPT_LIKE)
    kept = kept_for_backward(ready(shape, attention="plain", checkpointing=True), "bf16")
    said = estimated(shape, dtype="bf16", activation_checkpointing=True)
    assert said.activations == pytest.approx(kept, rel=0.01)


# A step is at its worst in the loss of a large vocabulary, in the attention of a long context, or in wide layers.
WORST = {
    "loss": {"vocab_size": 4000},
    "attention": {"vocab_size": 100, "max_seq_len": 256},
    "width": {"vocab_size": 100, "ffn_dim": 2048},
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt", "llama"])
@pytest.mark.parametrize("worst", WORST)
def test_activations_and_workspace_are_the_most_that_a_step_holds(
    worst: str, name: str, dtype: str, tmp_path: Path
) -> None:
    shape = TransformerConfig(**{**SHAPES[name], **WORST[worst]})
    model = ready(shape, attention="plain")
    for chunk in (loss_chunk(shape.vocab_size), 64) if worst == "loss" else (1000,):
        said = estimated(shape, dtype=dtype, loss_chunk=chunk)
        held = most_held(lambda chunk=chunk: loss(model, dtype, chunk).backward(), tmp_path)
        assert said.activations + said.workspace == pytest.approx(held, rel=0.05)


def test_checkpointing_lowers_the_most_that_a_step_holds_by_as_much_as_is_said(tmp_path: Path) -> None:
    shape = TransformerConfig(**{**GPT_LIKE, "n_layers": 6, "max_seq_len": 256})
    model = ready(shape, attention="plain", checkpointing=True)
    held = most_held(lambda: loss(model, "bf16", loss_chunk(500)).backward(), tmp_path)
    said = estimated(shape, dtype="bf16", activation_checkpointing=True)
    assert said.activations + said.workspace == pytest.approx(held, rel=0.1)
    assert held < 0.5 * estimated(shape, dtype="bf16").activations


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt", "llama"])
@pytest.mark.parametrize("vocab_size", [40, 500])  # at its worst in a block, and in the loss
def test_validation_is_the_most_that_a_batch_of_it_holds(
    vocab_size: int, name: str, dtype: str, tmp_path: Path
) -> None:
    shape = TransformerConfig(**{**SHAPES[name], "vocab_size": vocab_size})
    model = ready(shape, attention="plain").eval()
    tokens, labels = (torch.randint(shape.vocab_size, (1024 // shape.max_seq_len, shape.max_seq_len)) for _ in range(2))

    def score() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            token_nll(model.transformer(tokens), model.unembedding, labels, loss_chunk(shape.vocab_size))

    assert estimated(shape, dtype=dtype).validation == pytest.approx(most_held(score, tmp_path), rel=0.05)


def test_gradients_of_earlier_micro_batches_are_held_beside_the_activations() -> None:
    shape = TransformerConfig(**{**GPT_LIKE, "n_layers": 16})
    config, choices = settled(shape, device="cuda", dtype="bf16")
    whole, cut = (
        estimate_memory(GPT(shape), config, choices, batch_size=batch, process=0) for batch in (BATCH, 2 * BATCH)
    )
    assert cut.peak - whole.peak == whole.gradients
    assert whole.peak == whole.weights + whole.optimizer + whole.activations + whole.workspace  # nothing else on a GPU


def state_after_a_step(shape: TransformerConfig, config: OptimConfig) -> int:
    """Bytes of the tensors that the optimizers keep of real weights."""
    model = GPT.create(shape, seed=0)
    tokens = torch.randint(shape.vocab_size, (2, 9))

    def again() -> torch.Tensor:
        model.zero_grad()
        value = linear_cross_entropy(model.transformer(tokens[:, :-1]), model.unembedding, tokens[:, 1:], 100)
        value.backward()
        return value

    kept: list[object] = []
    for optimizer in make_optimizers(model, config):
        optimizer.step(again)
        kept += [value for entries in optimizer.state.values() for value in entries.values()]
    flat = [part for value in kept for part in (value if isinstance(value, list) else [value])]
    return sum(part.nbytes for part in flat if isinstance(part, torch.Tensor))


@pytest.mark.parametrize("shape", ["gpt", "llama"])
@pytest.mark.parametrize(
    ("values", "copies"),  # tensors like the weights
    [
        ({"name": "sgd", "momentum": 0.0}, 0),
        ({"name": "sgd"}, 1),
        ({"name": "adagrad"}, 1),
        ({"name": "rmsprop"}, 1),
        ({"name": "rmsprop", "momentum": 0.9}, 2),
        ({"name": "adam"}, 2),
        ({"name": "adamw"}, 2),
        ({"name": "muon"}, None),
    ],
    ids=str,
)
def test_optimizer_bytes_are_those_of_its_state(values: dict[str, object], copies: int | None, shape: str) -> None:
    config, size = OptimConfig(**values), TransformerConfig(**SHAPES[shape])
    said = optimizer_bytes(size, config)
    assert said == state_after_a_step(size, config)
    parameters = dict(GPT(size).named_parameters())
    weights = sum(parameter.nbytes for parameter in parameters.values())
    if copies is None:
        copies = 2
        said += sum(
            parameter.nbytes for name, parameter in parameters.items() if "blocks" in name and parameter.dim() == 2
        )
    assert said == pytest.approx(copies * weights, abs=8 * len(parameters))  # each may count its steps


def test_lbfgs_keeps_its_history_and_the_weights_before_a_step() -> None:
    shape = TransformerConfig(**LLAMA_LIKE)
    config = OptimConfig(name="lbfgs", history=2, max_iter=8)
    weights = sum(parameter.nbytes for parameter in GPT(shape).parameters())
    assert optimizer_bytes(shape, config) - 2 * weights == pytest.approx(state_after_a_step(shape, config), rel=0.001)


@pytest.mark.parametrize("name", SHAPES)
def test_cache_bytes_are_those_of_a_cache(name: str) -> None:
    shape = TransformerConfig(**SHAPES[name])
    cache = KVCache.for_model(GPT(shape).transformer, batch_size=3, max_len=10)
    assert kv_cache_bytes(shape) * 30 == sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert kv_cache_bytes(shape, "bf16") * 2 == kv_cache_bytes(shape)


@pytest.mark.parametrize("name", SHAPES)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    shape = TransformerConfig(**SHAPES[name])
    model = ready(shape, attention="plain")
    tokens = torch.randint(shape.vocab_size, (2, shape.max_seq_len))
    with FlopCounterMode(display=False) as counter:
        logits = model(tokens)
    said = flops_per_token(model)
    assert said["forward"] == pytest.approx(counter.get_total_flops() / tokens.numel())
    with counter:
        logits = model(tokens)
        logits.sum().backward()
    assert said["training"] == pytest.approx(counter.get_total_flops() / tokens.numel())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gpt", "shakespeare-char-cpu", "llama-mini"])
def test_the_peak_is_within_15_percent_of_what_a_run_logs(recipe: str, tmp_path: Path) -> None:
    values = ["train.steps=9", "train.val_every=4", "train.log_every=1", "train.compile=false", "eval.resamples=10"]
    words = [word for value in values for word in ("--set", value)]
    nlpstack = [sys.executable, "-m", "nlpstack"]
    subprocess.run([*nlpstack, "pretrain", recipe, "--out", tmp_path / "run", *words], check=True, capture_output=True)
    done = subprocess.run([*nlpstack, "info", recipe, "--json", *words], check=True, capture_output=True)
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    measured = max(record["memory_bytes"] for record in records if "memory_bytes" in record)
    assert json.loads(done.stdout)["bytes"]["peak"] == pytest.approx(measured, rel=0.15)
