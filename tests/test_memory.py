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

from nlpstack.data.batch import Batch, Shuffled
from nlpstack.job import make_choices
from nlpstack.memory import MemoryEstimate, estimate_memory, kv_cache_bytes, optimizer_bytes
from nlpstack.model import BERT, GPT, KVCache, LanguageModel, TransformerConfig
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores
from nlpstack.tasks import EvalConfig, TaskConfig
from nlpstack.tasks.masked_lm import label_room, masked_loss
from nlpstack.train.optim import OptimConfig, make_optimizers
from nlpstack.train.run import RunConfig, load_run
from nlpstack.train.runtime import Choices
from nlpstack.train.trainer import flops_per_token

GPT_LIKE = {"vocab_size": 500, "max_seq_len": 64, "dim": 64, "n_layers": 2, "n_heads": 4}
LLAMA_LIKE = {
    **GPT_LIKE,
    **{"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "n_kv_heads": 2, "ffn_dim": 176},
    **{"bias": False, "tied": False},
}
BERT_LIKE = {**GPT_LIKE, "causal": False, "pre_norm": False, "n_segments": 2}
MODERN = {**LLAMA_LIKE, "causal": False, "norm": "layernorm", "n_kv_heads": 0, "tied": True}
GPTS = {
    "gpt": GPT_LIKE,
    "llama": LLAMA_LIKE,
    "dropout": {**GPT_LIKE, "dropout": 0.1},
    "relu": {**GPT_LIKE, "activation": "relu"},
    "post-norm": {**GPT_LIKE, "pre_norm": False},
}
SHAPES = {**GPTS, "bert": BERT_LIKE, "bert-dropout": {**BERT_LIKE, "dropout": 0.1}, "modern": MODERN}
TASKS = {"modern": TaskConfig(nsp=False, mask_share=0.3)}  # one text a row, no padding; the others' rows are of two
BATCH = 4


def on_meta(shape: TransformerConfig, task: TaskConfig) -> LanguageModel:
    with torch.device("meta"):
        return GPT(shape) if shape.causal else BERT(shape, heads=("mlm", "pooler", "nsp") if task.nsp else ("mlm",))


def settled(shape: TransformerConfig, task: TaskConfig, **values: object) -> tuple[RunConfig, Choices]:
    """A run of a shape and the choices it makes on this machine's CPU, some of them given."""
    config = replace(load_run("gpt", "pretrain", {"train.device": "cpu"}, []).config, model=shape, task=task)
    train = {name: values.pop(name) for name in ("activation_checkpointing",) if name in values}
    config = replace(config, train=replace(config.train, **train), eval=EvalConfig(batch_tokens=1024))
    choices = make_choices(
        config,
        on_meta(shape, task),
        Shuffled(0, batch_size=BATCH, seed=1),
        seq_len=config.model.max_seq_len,
        note=lambda _: None,
    )
    return config, replace(choices, **{"micro_batch": BATCH, **values})


def estimated(shape: TransformerConfig, task: TaskConfig | None = None, **values: object) -> MemoryEstimate:
    task = task or TaskConfig()
    config, choices = settled(shape, task, **values)
    return of_the_run(estimate_memory(on_meta(shape, task), config, choices, batch_size=BATCH))


def of_the_run(said: MemoryEstimate) -> MemoryEstimate:
    """An estimate without what the process of the tests happens to hold."""
    return replace(said, process=0, peak=said.peak - said.process)


def ready(
    shape: TransformerConfig, task: TaskConfig | None = None, *, attention: str, checkpointing: bool = False
) -> LanguageModel:
    heads = ("mlm", "pooler", "nsp") if task is None or task.nsp else ("mlm",)
    model = GPT.create(shape, seed=0) if shape.causal else BERT.create(shape, seed=0, heads=heads)
    model.train().transformer.train_attention = attention
    model.transformer.checkpoint_activations = checkpointing
    return model


def some_batch(shape: TransformerConfig, task: TaskConfig | None, n_rows: int = BATCH) -> Batch:
    """Rows with labels, as the tasks make them, drawn at random."""
    task = task or TaskConfig()
    size = (n_rows, shape.max_seq_len)
    tokens = torch.randint(shape.vocab_size, size)
    if shape.causal:
        return Batch(tokens=tokens, labels={"lm": torch.randint(shape.vocab_size, size)})
    room = label_room(*size, task.mask_share, whole_words=task.whole_words)
    mlm, places = torch.randint(shape.vocab_size, (room,)), torch.randint(tokens.numel(), (room,))
    if not task.nsp:
        return Batch(tokens=tokens, labels={"mlm": mlm}, places=places)
    column = torch.arange(shape.max_seq_len).expand(size)
    return Batch(
        tokens=tokens,
        labels={"mlm": mlm, "nsp": torch.randint(2, (n_rows,))},
        places=places,
        mask=column < shape.max_seq_len - 3,
        segments=(column > 20).long(),
    )


def loss(model: LanguageModel, batch: Batch, dtype: str, chunk: int) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        if isinstance(model, BERT):
            return torch.stack([*masked_loss(model, batch, chunk).values()]).sum()
        return linear_cross_entropy(model.transformer(batch.tokens), model.unembedding, batch.labels["lm"], chunk)


def kept_for_backward(model: LanguageModel, batch: Batch, dtype: str) -> int:
    """Bytes of all storages that autograd keeps, but for the weights, and of the batch."""
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, batch, dtype, loss_chunk(model.config.vocab_size))
    kept += [tensor for tensor in (*vars(batch).values(), *batch.labels.values()) if isinstance(tensor, torch.Tensor)]
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


def most_held_by_a_step(model: LanguageModel, task: TaskConfig | None, dtype: str, chunk: int, folder: Path) -> int:
    return most_held(lambda: loss(model, some_batch(model.config, task), dtype, chunk).backward(), folder)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_what_autograd_keeps(name: str, dtype: str) -> None:
    shape, task = TransformerConfig(**SHAPES[name]), TASKS.get(name)
    for attention in ("plain", "fused") if "dropout" not in name else ("plain",):
        kept = kept_for_backward(ready(shape, task, attention=attention), some_batch(shape, task), dtype)
        said = estimated(shape, task, dtype=dtype, attention=attention)
        assert said.activations == pytest.approx(kept, rel=0.01)


@pytest.mark.parametrize("name", ["gpt", "dropout", "bert", "modern"])
def test_checkpointed_activations_are_what_autograd_keeps(name: str) -> None:
    shape, task = TransformerConfig(**SHAPES[name]), TASKS.get(name)
    model = ready(shape, task, attention="plain", checkpointing=True)
    kept = kept_for_backward(model, some_batch(shape, task), "bf16")
    kept += BATCH * shape.max_seq_len**2 if name == "bert" else 0  # the mask, which recomputing will be given
    said = estimated(shape, task, dtype="bf16", attention="plain", activation_checkpointing=True)
    assert said.activations == pytest.approx(kept, rel=0.01)


# A step is at its worst in the loss of a large vocabulary, in the attention of a long context, or in wide layers.
WORST = {
    "loss": {"vocab_size": 4000},
    "attention": {"vocab_size": 100, "max_seq_len": 256},
    "width": {"vocab_size": 100, "ffn_dim": 2048},
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "modern"])
@pytest.mark.parametrize("worst", WORST)
def test_activations_and_workspace_are_the_most_that_a_step_holds(
    worst: str, name: str, dtype: str, tmp_path: Path
) -> None:
    shape, task = TransformerConfig(**{**SHAPES[name], **WORST[worst]}), TASKS.get(name)
    model = ready(shape, task, attention="plain")
    for chunk in (loss_chunk(shape.vocab_size), 64) if worst == "loss" else (1000,):
        said = estimated(shape, task, dtype=dtype, attention="plain", loss_chunk=chunk)
        held = most_held_by_a_step(model, task, dtype, chunk, tmp_path)
        assert said.activations + said.workspace == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("name", ["dropout", "bert-dropout"])
def test_the_fused_product_with_dropout_holds_what_is_said(name: str, tmp_path: Path) -> None:
    shape = TransformerConfig(**SHAPES[name])
    said = estimated(shape, dtype="bf16", attention="fused")
    held = most_held_by_a_step(ready(shape, attention="fused"), None, "bf16", loss_chunk(500), tmp_path)
    assert said.activations + said.workspace == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("like", [GPT_LIKE, BERT_LIKE], ids=["gpt", "bert"])
def test_checkpointing_lowers_the_most_that_a_step_holds_by_as_much_as_is_said(
    like: dict[str, object], tmp_path: Path
) -> None:
    shape = TransformerConfig(**{**like, "n_layers": 6, "max_seq_len": 256})
    model = ready(shape, attention="plain", checkpointing=True)
    held = most_held_by_a_step(model, None, "bf16", loss_chunk(500), tmp_path)
    said = estimated(shape, dtype="bf16", attention="plain", activation_checkpointing=True)
    assert said.activations + said.workspace == pytest.approx(held, rel=0.05)
    assert held < 0.5 * estimated(shape, dtype="bf16", attention="plain").activations


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "modern"])
@pytest.mark.parametrize("vocab_size", [40, 4000])  # at its worst in a block, and in the loss
def test_validation_is_the_most_that_a_batch_of_it_holds(
    vocab_size: int, name: str, dtype: str, tmp_path: Path
) -> None:
    shape, task = TransformerConfig(**{**SHAPES[name], "vocab_size": vocab_size}), TASKS.get(name)
    model = ready(shape, task, attention="plain").eval()

    def score() -> None:
        batch = some_batch(shape, task, n_rows=1024 // shape.max_seq_len)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            hidden = model.transformer(batch.tokens, mask=batch.mask, segments=batch.segments)
            states, labels, bias = hidden, next(iter(batch.labels.values())), None
            if isinstance(model, BERT):
                states, bias = model.mlm_head(hidden.flatten(0, 1)[batch.places]), model.mlm_head.bias
            token_scores(states, model.unembedding, labels, loss_chunk(shape.vocab_size), bias)

    assert estimated(shape, task, dtype=dtype).validation == pytest.approx(most_held(score, tmp_path), rel=0.05)


def test_an_estimate_leaves_the_model_and_the_random_numbers_alone() -> None:
    shape = TransformerConfig(**{**BERT_LIKE, "dropout": 0.1})
    config, choices = settled(shape, TaskConfig(), activation_checkpointing=True)
    model = BERT.create(shape, seed=0).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    said = of_the_run(estimate_memory(model, config, choices, batch_size=BATCH))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert said == estimated(shape, activation_checkpointing=True)  # as of a model on the meta device


def test_gradients_of_earlier_micro_batches_are_held_beside_the_activations() -> None:
    shape = TransformerConfig(**{**GPT_LIKE, "n_layers": 16})
    config, choices = settled(shape, TaskConfig(), device="cuda", dtype="bf16")
    whole, cut = (estimate_memory(GPT(shape), config, choices, batch_size=batch) for batch in (BATCH, 2 * BATCH))
    assert cut.peak - whole.peak == whole.gradients
    assert whole.peak == whole.weights + whole.optimizer + whole.activations + whole.workspace  # nothing else on a GPU


def state_after_a_step(shape: TransformerConfig, config: OptimConfig) -> int:
    """Bytes of the tensors that the optimizers keep of real weights."""
    model = ready(shape, attention="plain")
    batch = some_batch(shape, None, n_rows=2)

    def again() -> torch.Tensor:
        model.zero_grad()
        value = loss(model, batch, "fp32", 100)
        value.backward()
        return value

    kept: list[object] = []
    for optimizer in make_optimizers(model, config):
        optimizer.step(again)
        kept += [value for entries in optimizer.state.values() for value in entries.values()]
    flat = [part for value in kept for part in (value if isinstance(value, list) else [value])]
    return sum(part.nbytes for part in flat if isinstance(part, torch.Tensor))


@pytest.mark.parametrize("shape", ["gpt", "llama", "bert"])
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
    model = on_meta(size, TaskConfig())
    said = optimizer_bytes(model, config)
    assert said == state_after_a_step(size, config)
    parameters = dict(model.named_parameters())
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
    model = on_meta(shape, TaskConfig())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert optimizer_bytes(model, config) - 2 * weights == pytest.approx(state_after_a_step(shape, config), rel=0.001)


@pytest.mark.parametrize("name", GPTS)
def test_cache_bytes_are_those_of_a_cache(name: str) -> None:
    shape = TransformerConfig(**SHAPES[name])
    cache = KVCache.for_model(GPT(shape).transformer, batch_size=3, max_len=10)
    assert kv_cache_bytes(shape) * 30 == sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert kv_cache_bytes(shape, "bf16") * 2 == kv_cache_bytes(shape)


@pytest.mark.parametrize("name", GPTS)
@pytest.mark.parametrize("short", [0, 5])
def test_flops_are_those_that_torch_counts(short: int, name: str) -> None:
    shape = TransformerConfig(**SHAPES[name])
    model = ready(shape, attention="plain")
    tokens = torch.randint(shape.vocab_size, (2, short or shape.max_seq_len))
    with FlopCounterMode(display=False) as counter:
        logits = model(tokens)
    said = flops_per_token(model, length=short)
    assert said["forward"] == pytest.approx(counter.get_total_flops() / tokens.numel())
    with counter:
        logits = model(tokens)
        logits.sum().backward()
    assert said["training"] == pytest.approx(counter.get_total_flops() / tokens.numel())


@pytest.mark.parametrize("name", ["bert", "modern"])
@pytest.mark.parametrize("predicted", [0.0, 0.25, 1.0])
def test_flops_of_a_bert_are_those_that_torch_counts(predicted: float, name: str) -> None:
    shape = TransformerConfig(**SHAPES[name])
    model = ready(shape, attention="plain")
    tokens = torch.randint(shape.vocab_size, (2, shape.max_seq_len))
    n_hidden = round(predicted * tokens.numel())

    def forward() -> torch.Tensor:
        return model.mlm_logits(model(tokens).flatten(0, 1)[:n_hidden])

    with FlopCounterMode(display=False) as counter:
        logits = forward()
    said = flops_per_token(model, predicted=predicted)
    assert said["forward"] == pytest.approx(counter.get_total_flops() / tokens.numel())
    with counter:
        logits = forward()
        logits.sum().backward()
    assert said["training"] == pytest.approx(counter.get_total_flops() / tokens.numel())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gpt", "shakespeare-char-cpu", "llama-mini", "bert"])
def test_the_peak_is_within_15_percent_of_what_a_run_logs(recipe: str, tmp_path: Path) -> None:
    values = ["train.steps=9", "train.val_every=4", "train.log_every=1", "train.compile=false", "eval.resamples=10"]
    words = [word for value in values for word in ("--set", value)]
    # A program counts the peak of the process that it takes the place of, on Linux: not this one, which may have held
    # more than a run does, but a shell's child.
    nlpstack = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "nlpstack"]
    subprocess.run([*nlpstack, "pretrain", recipe, "--out", tmp_path / "run", *words], check=True, capture_output=True)
    done = subprocess.run([*nlpstack, "info", recipe, "--json", *words], check=True, capture_output=True)
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    measured = max(record["memory_bytes"] for record in records if "memory_bytes" in record)
    assert json.loads(done.stdout)["bytes"]["peak"] == pytest.approx(measured, rel=0.15)
