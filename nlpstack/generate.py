"""What `nlpstack generate` does: a model and prompts in, the text the model writes out."""

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from nlpstack.data.readers import mute, text_lines
from nlpstack.decode import Generation, Sampling, Timing, decode
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.model import GPT, LanguageModel
from nlpstack.start import frame, open_model
from nlpstack.tokenizer.chat import Chat, Message
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
    prompts: Sequence[str | Sequence[Message]],
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    batch_size: int = 16,
    device: str = "auto",
    dtype: str = "fp32",
    threads: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> GenerationResult:
    """What a model, or the one in a folder, writes after each prompt; an empty prompt starts from nothing.

    A conversation, a list of roles and texts, goes on with the assistant's next turn, by the tokenizer's chat template.
    `dtype` is that of the weights. A model object is left as it is: device "auto" means where it stands, and for
    another device or dtype a copy is made. `threads` compute during the call (None: as many as now). Up to `batch_size`
    texts are written at a time, or one prompt's samples or beams. `on_text` takes a single prompt's text as it grows.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown; give one of {', '.join(DTYPES)}")
    if isinstance(prompts, str):
        raise ConfigError("prompts: expected a list of texts, got one text; put it in a list")
    turns = [turn for one in prompts if not isinstance(one, str) for turn in one or ("",)]
    if not all(isinstance(turn, tuple) and [isinstance(part, str) for part in turn] == [True, True] for turn in turns):
        raise ConfigError("prompts: a conversation is a list of pairs (role, content), at least one, all of them texts")
    where = {"device": device, "dtype": dtype} if isinstance(model, str | Path) else {}
    with session(threads=threads):
        ready, name = open_model(model, **where)
        if not isinstance(ready, GPT):
            fault = "a BERT, an encoder that sees both sides of a token, so it cannot go on from a text"
            raise ModelError(f"{name}: {fault}; see 'nlpstack fill-mask' and 'nlpstack embed', or give a GPT")
        frame(ready, name)  # it has a tokenizer
        talks = [prompt for prompt in prompts if not isinstance(prompt, str)]
        begun = iter(Chat(ready.tokenizer, name).prompts(talks) if talks else ())
        given = [prompt if isinstance(prompt, str) else (prompt[-1][1], next(begun)) for prompt in prompts]
        target = ready.unembedding.device if device == "auto" else resolve_device(device)
        wanted = torch.empty(0, dtype=DTYPES[dtype], device=target)  # tells which of several GPUs is meant
        if any(weight.dtype != wanted.dtype or weight.device != wanted.device for weight in ready.parameters()):
            # A copy, so that one which the caller holds stays as it is.
            ready = copy.deepcopy(ready, {id(ready.tokenizer): ready.tokenizer}).to(wanted)
        generations, timing = decode(ready, ready.tokenizer, given, sampling, batch_size=batch_size, on_text=on_text)
    return GenerationResult(generations=generations, timing=timing, device=str(ready.unembedding.device), dtype=dtype)


def default_prompts(path: str | Path) -> list[str]:
    """The prompts of a run's last validation sample; for any other model folder, one empty prompt."""
    folder = Path(path)
    metrics = (folder.parent if folder.name == "model" else folder) / "metrics.jsonl"
    lines = metrics.read_bytes().split(b"\n") if metrics.is_file() else []
    for line in reversed(lines):
        with suppress(ValueError, LookupError, TypeError, RecursionError):  # empty, or cut short by a killed run
            record = json.loads(line)
            if isinstance(record, dict) and record.get("samples"):
                prompts = [sample["prompt"] for sample in record["samples"]]
                if all(isinstance(prompt, str) for prompt in prompts):
                    return prompts
    return [""]


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, packed or not, one prompt a line; an empty line is an empty prompt."""
    if not (prompts := list(text_lines(Path(path), mute))):
        raise DataError(f"{path}: is empty; write one prompt a line")
    return prompts
