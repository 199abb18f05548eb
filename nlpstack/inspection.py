"""What `nlpstack info` and `nlpstack doctor` do: what a model takes, and what a machine has to give."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nlpstack import __version__
from nlpstack.config import near, read_toml
from nlpstack.data.batch import Shuffled
from nlpstack.data.corpus import load_corpus
from nlpstack.data.readers import Note, mute
from nlpstack.errors import ConfigError, did_you_mean
from nlpstack.hub import load_model
from nlpstack.job import count_parameters, make_choices, run_session
from nlpstack.memory import MemoryEstimate, estimate_memory, kv_cache_bytes
from nlpstack.model import BERT, GPT, LanguageModel, on_meta
from nlpstack.model.heads import HEADS
from nlpstack.model.kernels import faster_in_training, fused_attention, plain_attention
from nlpstack.recipes import find_recipe, list_recipes
from nlpstack.tasks import TaskConfig
from nlpstack.tokenizer import train_tokenizer
from nlpstack.tokenizer.sentencepiece import N_FIXED
from nlpstack.train import runtime
from nlpstack.train.run import RunConfig, RunFolder, load_run
from nlpstack.train.runtime import Choices
from nlpstack.train.trainer import flops_per_token

STAGE = "pretrain"
_PRINTABLE = 95  # characters of ASCII: what a vocabulary of characters is taken to hold where no text is at hand

EXTRAS = {
    "hf": (("tokenizers", "jinja2"), "vocabularies and chat templates of published models"),
    "report": (("matplotlib", "jinja2"), "pictures of losses and attention, pages of evaluations"),
    "zstd": (("backports-zstd",) * (sys.version_info < (3, 14)), ".zst corpora"),
    "gguf": (("gguf",), ".gguf models"),
}
_REQUIRED = ("torch", "numpy", "sentencepiece", "safetensors", "pydantic", "click")
_SLOWER = 0.85  # a choice is contradicted where it reaches less than this share of the other's speed
_LITTLE_SPACE = 1 << 30  # bytes
_WRITTEN = 32 << 20  # bytes of the file that tells how fast the disk is
_SHAPE = (16, 6, 128, 32)  # sequences, heads, tokens, width of a head: the recipe `gpt`
_RULES = {  # how a choice is made
    "dtype": "bf16 on CPUs with AMX or AVX512-BF16 and GPUs of capability 8.0 up, else fp32",
    "attention": "plain products on a CPU in bf16 or with dropout, else the fused kernel",
}


def info(
    target: str | Path, overrides: Sequence[str] = (), *, flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Size and cost of the model of a recipe, a run or a model folder: parameters, FLOPs a token, bytes.

    `overrides` ("section.key=value") and `flags` ("section.key" -> value) change a recipe. Of a folder that is no run
    the bytes of training are None, since nothing says how it would be trained, and those of the cache of keys and
    values are None for a BERT, which has none. Raises NlpstackError where nothing is found.
    """
    notes: list[str] = []
    name, config, choices = str(target), None, None
    model: LanguageModel
    if (recipe := _recipe(target)) is not None:
        run = load_run(str(recipe), STAGE, flags or {}, overrides)
        kind, name, config = "recipe", run.name, run.config
        notes += run.resolved.notes
        shape = replace(config.model, vocab_size=_vocab_size(config, notes.append))
        with on_meta():
            model = GPT(shape) if shape.causal else BERT(shape, heads=HEADS if config.task.nsp else ("mlm",))
    elif overrides:
        raise ConfigError(f"--set {overrides[0]}: {target} is a model, which has no values to set; give a recipe")
    else:
        kind, model = "model", load_model(target)
        if (record := Path(target) / "config.toml").is_file():
            kind, config = "run", load_run(str(record), STAGE, {}, ()).config
            choices = RunFolder(record.parent, read_toml(record)).choices()
    task = config.task if config else TaskConfig()
    scored = 1.0 if isinstance(model, GPT) else task.mask_share if model.mlm_head is not None else 0.0
    found: dict[str, Any] = {"name": name, "kind": kind, "shape": asdict(model.config)}
    found |= {"parameters": _parameters(model), "flops_per_token": flops_per_token(model, predicted=scored)}
    found |= {"kv_cache_bytes_per_token": kv_cache_bytes(model.config) if model.config.causal else None}
    return {**found, **_training(model, config, choices, notes.append), "notes": notes}


def _recipe(target: str | Path) -> Path | None:
    """The recipe that is meant, None if it is a folder; ConfigError if it is neither."""
    path, name = Path(target), str(target)
    names = {key for recipe in list_recipes(STAGE) for key in (recipe.name, recipe.full_name)}
    if name in names or (path.suffix == ".toml" and not path.is_dir()):
        return find_recipe(name, STAGE)
    if path.exists():
        return None
    folders = [folder for place in {path.parent, Path("runs")} if place.is_dir() for folder in place.iterdir()]
    known = names | {str(folder) for folder in folders if folder.is_dir() and not folder.name.startswith(".")}
    hint = did_you_mean(name, known) or near(name, names)  # not a list of the folders; there may be many
    raise ConfigError(f"'{name}' is neither a recipe nor a folder{hint}")


def _vocab_size(config: RunConfig, note: Note) -> int:
    """The vocabulary that a run's tokenizer will have: the recipe's, or every character of its text."""
    size = config.tokenizer.vocab_size
    if size is None and config.data.paths and all(path.startswith("sample:") for path in config.data.paths):
        split = load_corpus(config.data, mute)["train"]
        size = train_tokenizer((piece.text for piece in split.pieces()), config.tokenizer).vocab_size
        note(f"vocabulary: {size:,}, every character of {', '.join(config.data.paths)}")
    elif size is None:
        size = N_FIXED + _PRINTABLE
        note(f"vocabulary: {size:,} assumed, the characters of ASCII; a run takes every character of its text")
    if (asked := config.model.vocab_size) not in (0, size):
        raise ConfigError(f"model.vocab_size={asked}: a run takes its tokenizer's, {size}; set tokenizer.vocab_size")
    return size


def _parameters(model: LanguageModel) -> dict[str, int]:
    """Weights, shared ones once: of tokens and positions, a BERT's heads, the others, and the blocks by rule."""
    config, core = model.config, model.transformer
    total, blocks = count_parameters(model), count_parameters(core.blocks)
    other = blocks + count_parameters(core.norm)
    sizes = {name: p.numel() for name, p in model.named_parameters() if "decoder" not in name}  # it is an unembedding
    heads = sum(n for name, n in sizes.items() if name.startswith(("mlm_head.", "pooler.", "nsp_head.", "classifier.")))
    parts = {"total": total, "embedding": total - other - heads, "other": other, "blocks": blocks, "heads": heads}
    return {**parts, "rule_12_l_d2": 12 * config.n_layers * config.dim**2}


def _training(model: LanguageModel, config: RunConfig | None, choices: Choices | None, note: Note) -> dict[str, Any]:
    """The choices of a run and the bytes it takes; of a model without a recipe, the bytes of its weights alone."""
    if config is None:
        weights = sum(parameter.nbytes for parameter in model.parameters())
        note("no run: how it would be trained is not known, so only the weights are counted")
        return {"training": None, "bytes": {**dict.fromkeys(MemoryEstimate.__dataclass_fields__), "weights": weights}}
    train, length = config.train, model.config.max_seq_len
    batch_size = train.sequences(length)
    with run_session(config, choices):  # what it loads is part of what the process holds
        if choices is None:
            order = Shuffled(0, batch_size=batch_size, seed=train.seed)
            choices = make_choices(config, model, order, seq_len=length, note=note)
        estimate = estimate_memory(model, config, choices, batch_size=batch_size)
    if train.epochs is not None:
        note("train.epochs: how many steps that is depends on the data, so whether it is compiled is not known")
    if choices.compile:
        note("the run is compiled, and the bytes are those of an eager one; it keeps less, and compiling takes its own")
    made = ("device", "dtype", "attention", "compile", "threads", "micro_batch", "loss_chunk")
    training = {name: getattr(choices, name) for name in made} | {"optimizer": config.optim.name}
    training |= {"sequence_length": length, "batch_size": batch_size, "tokens_per_step": batch_size * length}
    training |= {"activation_checkpointing": train.activation_checkpointing}
    return {"training": training, "bytes": asdict(estimate)}


def doctor(
    out: str | Path = ".", *, device: str = "auto", threads: int | None = None, full: bool = False
) -> dict[str, Any]:
    """What this machine has for a run whose folder is `out`: versions, choices with a measurement each, disk, memory.

    `problems` lists what a run would stumble over, and rules that the measurement contradicts. With `full` it compiles
    a small function too, which takes long. Raises ConfigError for a device that is not there.
    """
    problems: list[str] = []
    place, problem = runtime.resolve_device(device), problems.append
    with runtime.session(threads=threads):
        return {
            "versions": {"nlpstack": __version__, "python": platform.python_version(), **_versions(_REQUIRED)},
            "extras": {
                extra: {"installed": all((found := _versions(packages)).values()), "gives": gives, "packages": found}
                for extra, (packages, gives) in EXTRAS.items()
            },
            "machine": _machine(place, problem),
            "device": {"choice": str(place), "rule": "a CUDA device where torch finds one, else the CPU"},
            **_measured_choices(place, runtime.resolve_dtype("auto", place), problem),
            "compiler": _check_compiler(place, full, problem),
            "disk": _check_disk(Path(out), problem),
            "problems": problems,
        }


def _versions(packages: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _machine(device: torch.device, problem: Note) -> dict[str, Any]:
    """Processor, cores, threads and memory in bytes; None where the system does not say."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads > usable:
        problem(f"threads: {threads} on {usable} usable cores wait for one another; give --threads {usable}")
    sizes = {}
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            sizes[line.split(":")[0]] = int(line.split()[1]) * 1024
    found: dict[str, Any] = {"system": platform.platform(), "processor": runtime.processor_name("cpu")}
    found |= {"cores": usable, "threads": threads}
    found |= {"memory_bytes": sizes.get("MemTotal"), "memory_free_bytes": sizes.get("MemAvailable")}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"gpu": torch.cuda.get_device_name(device), "gpu_memory_bytes": total, "gpu_memory_free_bytes": free}
    return found


def _seconds(work: Callable[[], object]) -> float:
    """The shortest time that a piece of work takes, warmed up, in about a third of a second of trying."""
    from torch.utils.benchmark import Timer  # takes a while, and `info` needs none

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    timer.timeit(2)
    return min(timer.blocked_autorange(min_run_time=0.3).times)


def _beside_rule(what: str, chosen: str, seconds: Mapping[str, float], problem: Note) -> dict[str, Any]:
    """A rule and what it chooses; that another choice was clearly faster is a problem."""
    best = min(seconds, key=lambda name: seconds[name])
    if seconds[best] < _SLOWER * seconds[chosen]:
        times = f"{seconds[chosen] / seconds[best]:.1f} times as fast here"
        told = f"{chosen}, but {best} multiplies {times}; give --dtype {best}"
        if what == "attention":
            told = f"the {chosen} product, but the {best} one is {times} at {_SHAPE[2]} tokens"
        problem(f"{what}: the rule takes {told}")
    return {"choice": chosen, "rule": _RULES[what]}


def _product_seconds(n: int, dtype: str, device: torch.device) -> float:
    a = torch.ones(n, n, dtype=runtime.DTYPES[dtype], device=device)
    return _seconds(lambda: a @ a)


def _attention_seconds(product: str, dtype: str, device: torch.device) -> float:
    attend = {"plain": plain_attention, "fused": fused_attention}[product]
    q, k, v = (torch.randn(_SHAPE, device=device, dtype=runtime.DTYPES[dtype], requires_grad=True) for _ in range(3))
    return _seconds(lambda: attend(q, k, v, None, causal=True, dropout=0.0).sum().backward())


def _measured_choices(device: torch.device, dtype: str, problem: Note) -> dict[str, Any]:
    """FLOP/s of a matrix product in each dtype, milliseconds of each attention product there and back, beside rules."""
    n = 1024 if device.type == "cpu" else 8192
    products = {name: _product_seconds(n, name, device) for name in ("fp32", "bf16")}
    kernels = {name: _attention_seconds(name, dtype, device) for name in ("plain", "fused")}
    rates = {f"{name}_gflops": round(2e-9 * n**3 / seconds, 1) for name, seconds in products.items()}
    times = {f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in kernels.items()}
    return {
        "dtype": _beside_rule("dtype", dtype, products, problem) | rates,
        "attention": _beside_rule("attention", faster_in_training(device.type, dtype, 0.0), kernels, problem) | times,
    }


def _check_compiler(device: torch.device, full: bool, problem: Note) -> dict[str, Any]:
    """Whether torch.compile finds what it needs and, with `full`, the seconds that a small function takes."""
    found, seconds = runtime.can_compile(device.type), None
    if not found:
        problem("compiler: none found, so every run is eager; a C++ compiler (g++, clang++) makes long runs faster")
    elif full:
        started = time.perf_counter()
        try:
            torch.compile(lambda x: (x * x).sum())(torch.ones(64, device=device))
            seconds = round(time.perf_counter() - started, 1)
        except Exception as error:  # whatever the compiler or torch's own code says is the finding
            said = " ".join(str(error).split())[:200]
            problem(f"compiler: found, but compiling fails ({said}); give --set train.compile=false")
    return {"found": found, "compile_seconds": seconds}


def _check_disk(out: Path, problem: Note) -> dict[str, Any]:
    """Free bytes where a run's folder would be, and how fast a file is written there and forced onto the disk."""
    place = next((folder for folder in (out, *out.parents) if folder.is_dir()), Path("."))
    free, speed = shutil.disk_usage(place).free, None
    if free < _LITTLE_SPACE:
        problem(f"disk: {free / 2**20:,.0f} MiB free at {place}; a run keeps three checkpoints of 12 bytes a weight")
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".nlpstack-doctor-") as file:
            started = time.perf_counter()
            file.write(bytes(_WRITTEN))
            file.flush()
            os.fsync(file.fileno())
            speed = round(_WRITTEN / 1e6 / (time.perf_counter() - started), 1)
    except OSError as error:
        problem(f"disk: {place}: cannot be written ({error.strerror}); give another --out")
    return {"path": str(place), "free_bytes": free, "write_mb_per_second": speed}
