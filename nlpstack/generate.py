"""What `nlpstack generate` does: a model and prompts in, the text the model writes out."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nlpstack.decode import Generation, Sampling, Timing, decode
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.hub import load_model
from nlpstack.model import GPT, LanguageModel
from nlpstack.train.runtime import DTYPES, resolve_device, session

DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """As many generations a prompt as there are samples, in the prompts' order, and how fast they came."""

    generations: list[Generation]
    timing: Timing
    device: str
    dtype: str


def generate(
    model: LanguageModel | str | Path,
    prompts: Sequence[str],
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    batch_size: int = 16,
    device: str = "auto",
    dtype: str = "fp32",
    threads: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> GenerationResult:
    """What a model, or the one in a folder, writes after each prompt; an empty prompt starts from nothing.

    `dtype` is that of the weights. A model object is left as it is: device "auto" means where it stands, and for
    another device or dtype a copy is made. `threads` compute during the call (None: as many as now). At most
    `batch_size` texts are written at a time, or one prompt's samples or beams. `on_text` is given the text of a single
    prompt as it grows.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown; give one of {', '.join(DTYPES)}")
    if isinstance(prompts, str):
        raise ConfigError("prompts: expected a list of texts, got one text; put it in a list")
    with session(threads=threads or torch.get_num_threads(), deterministic=False):
        ready = _ready(model, device, DTYPES[dtype])
        if ready.tokenizer is None:
            raise ModelError(
                f"{_name(model)}: has no tokenizer, so it can neither read a prompt nor write text; add its files"
            )
        generations, timing = decode(ready, ready.tokenizer, prompts, sampling, batch_size=batch_size, on_text=on_text)
    return GenerationResult(generations=generations, timing=timing, device=str(ready.unembedding.device), dtype=dtype)


def _ready(model: LanguageModel | str | Path, device: str, dtype: torch.dtype) -> GPT:
    """The model on its device and in its dtype, without changing one that the caller holds."""
    if isinstance(model, str | Path):
        return _causal(load_model(model, device=resolve_device(device), dtype=dtype), model)
    held = _causal(model, model)
    target = held.unembedding.device if device == "auto" else resolve_device(device)
    if all(_is_on(weight.device, target) and weight.dtype == dtype for weight in held.parameters()):
        return held
    return copy.deepcopy(held, {id(held.tokenizer): held.tokenizer}).to(target, dtype)


def _causal(ready: LanguageModel, model: LanguageModel | str | Path) -> GPT:
    """The model if it can go on from a text."""
    if not isinstance(ready, GPT):
        raise ModelError(
            f"{_name(model)}: a BERT, an encoder that sees both sides of a token, so it cannot go on from a text; see "
            "'nlpstack fill-mask' and 'nlpstack embed', or give a GPT"
        )
    return ready


def _name(model: LanguageModel | str | Path) -> str:
    return str(model) if isinstance(model, str | Path) else "the model"


def _is_on(device: torch.device, target: torch.device) -> bool:
    return device.type == target.type and target.index in (None, device.index)


def default_prompts(path: str | Path) -> list[str]:
    """The prompts of a run's last validation sample; for any other model folder, one empty prompt."""
    folder = Path(path)
    metrics = (folder.parent if folder.name == "model" else folder) / "metrics.jsonl"
    if not metrics.is_file():
        return [""]
    for line in reversed(metrics.read_bytes().split(b"\n")):
        try:
            record = json.loads(line)
        except ValueError:  # empty, or cut short by a killed run
            continue
        samples = record.get("samples") if isinstance(record, dict) else None
        if samples:
            return [sample["prompt"] for sample in samples]
    return [""]


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, one prompt a line; an empty line is an empty prompt."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); --prompts takes a text file") from error
    if not data:
        raise DataError(f"{path}: is empty; write one prompt a line")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; convert the file to UTF-8"
        ) from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
