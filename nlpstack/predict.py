"""What `nlpstack fill-mask` and `nlpstack predict` do: tokens for a text's masks, results for a file's rows."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from nlpstack.config import build
from nlpstack.data import labelled
from nlpstack.data.readers import SUFFIXES_OF, Note, corpus_suffix, mute
from nlpstack.decode import Sampling
from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.hub import load_model
from nlpstack.model import BERT, GPT, LanguageModel
from nlpstack.start import frame, open_model
from nlpstack.tasks import Generation, LabelledTask, TaskConfig, labelled_task, labelled_task_of
from nlpstack.train.run import read_record
from nlpstack.train.runtime import gathered, rank, resolve_device, session, world_size

_CHUNK = 512  # inputs that are read, and put in order of length, at a time
_WORD = re.compile(r"\w+|[^\w\s]")
_ANY_MASK = re.compile(r"\[mask\]|<mask>", re.IGNORECASE)  # as BERT and RoBERTa spell it, or nearly


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One token for one mask."""

    mask: int  # which one of the text, from 0
    token: str  # as it is spelled, without the space before it
    probability: float  # among all tokens of the vocabulary
    id: int
    text: str  # the text with this mask filled in and the others left


def fill_mask(
    model: LanguageModel | str | Path, text: str, *, top_k: int = 5, device: str = "auto", threads: int | None = None
) -> list[Guess]:
    """The `top_k` likeliest tokens for each mask of a text, best first, mask by mask.

    A mask is written as the tokenizer spells it. Several are guessed in one pass, each as if the others stayed hidden.
    `device` is for a model that is read from a folder, in fp32; `threads` compute during the call (None: as now).
    """
    with session(threads=threads):
        ready, name = _ready(model, device)
        tokenizer = ready.tokenizer
        size = tokenizer.vocab_size
        if not 1 <= top_k <= size:
            raise ConfigError(f"top_k={top_k}: must be at least 1, and at most {size:,}, the vocabulary")
        parts = _parts(text, tokenizer)
        row, context = [tokenizer.cls_id], ready.config.max_seq_len  # [CLS] text [SEP]
        for part in parts:
            row += [*tokenizer.encode(part), tokenizer.mask_id]  # which stands nowhere else: no text is encoded as it
        row[-1] = tokenizer.sep_id  # behind the last part is no mask
        if len(row) > context:
            holds = f"the model's context holds {context:,} (max_seq_len)"
            raise DataError(f"the text has {len(row):,} tokens with the special ones around it, {holds}; shorten it")
        tokens = torch.tensor([row])  # (1, T)
        with evaluating(ready), torch.inference_mode():
            hidden = ready(tokens.to(ready.transformer.tokens.weight.device))  # (1, T, D)
            logits = ready.mlm_logits(hidden[tokens == tokenizer.mask_id])  # (M, D) -> (M, V)
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)  # (M, V)
        if not bool(torch.isfinite(probabilities).all()):
            raise ModelError(f"{name}: its logits are not finite, so its weights are broken")
        # Where the vocabulary was rounded up, ids beyond the tokenizer's are no tokens. Of equal ones the lowest wins.
        ordered = probabilities[:, :size].sort(dim=1, descending=True, stable=True)
        best, ids = (found[:, :top_k].tolist() for found in ordered)
    return [
        Guess(mask=mask, token=spelled, probability=probability, id=token, text=text)
        for mask, row in enumerate(zip(best, ids, strict=True))
        for probability, token in zip(*row, strict=True)
        for spelled, text in [_filled(parts, mask, token, tokenizer)]
    ]


def _ready(model: LanguageModel | str | Path, device: str) -> tuple[BERT, str]:
    ready, name = open_model(model, device=device)
    if not isinstance(ready, BERT):
        cure = "fill-mask takes a BERT, and 'nlpstack generate' goes on from a text"
        raise ModelError(f"{name}: a GPT, which sees only what stands before a token; {cure}")
    if "mlm" not in ready.heads:
        cure = "take a BERT as it was pretrained ('nlpstack embed' works with this one)"
        raise ModelError(f"{name}: has no masked-token head, so it cannot guess; {cure}")
    frame(ready, name)
    if ready.tokenizer.mask_id is None:
        raise ModelError(f"{name}: its tokenizer has no mask token; add the tokenizer it was trained with")
    return ready, name


def _parts(text: str, tokenizer: Any) -> list[str]:
    mask = tokenizer.mask_token
    parts = text.split(mask)
    if len(parts) == 1:
        close = _ANY_MASK.search(text)
        hint = f"; this model's mask is {mask}, not {close[0]}" if close else ""
        raise DataError(f"the text has no mask: write {mask} where a token is to be guessed{hint}")
    # Where a word's first piece begins with the space before it, as SentencePiece and byte-level BPE have it, the model
    # never saw a mask behind a space. Those of characters do not: there a space is a token, which can be hidden itself.
    pieces = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    if any(piece.startswith(b" ") and piece.strip() for piece in pieces):
        parts[:-1] = [part.rstrip() for part in parts[:-1]]
    return parts


def _filled(parts: list[str], mask: int, token: int, tokenizer: Any) -> tuple[str, str]:
    """A token as its tokenizer spells it, without a space before it, and the text with it in place of the mask."""
    before, after = (str(tokenizer.mask_token).join(side) for side in (parts[: mask + 1], parts[mask + 1 :]))
    text, piece = tokenizer.token_bytes(token).decode(errors="replace"), tokenizer.piece(token)
    if token in tokenizer.special_ids:  # `[SEP]`
        return piece, before + piece + after
    spelled = text.strip() or text
    if piece == f"##{text}":  # it goes on with the word before it
        before, spelled = before.rstrip(), piece
    return spelled, f"{before}{text if before else text.lstrip()}{after}"


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How predictions are made."""

    base: str | Path | None = None  # of an adapter, where it is not where the adapter says
    batch_tokens: int = 2048  # of a batch, padding included
    overrides: Mapping[str, Any] = field(default_factory=dict)  # keys of [task]: threshold, constrained, truncate
    sampling: Sampling = field(default_factory=lambda: Sampling(greedy=True))  # generation
    device: str = "auto"
    threads: int | None = None


def predict(
    model: str | Path, source: str | Path, options: PredictOptions | None = None, *, skip: int = 0, note: Note = mute
) -> Iterator[dict[str, Any]]:
    """One result an input, in the order of the file, without the first `skip`; little of the file is held at a time.

    Classification: `label`, `probabilities`; NER: `tags`, `entities`; generation: `text`. A .txt has a text or prompt a
    line, for NER cut into words and single other signs; the other kinds are those of training, without their labels.
    """
    options, path = options or PredictOptions(), Path(source)
    if not path.is_file():
        raise DataError(f"{source}: no such file")
    ready = load_model(model, device=resolve_device(options.device), base=options.base, note=note)
    record = read_record(Path(model))
    name = labelled_task_of(ready, record) or ("generation" if isinstance(ready, GPT) else "")
    if not name:
        raise ModelError(f"{model}: was not fine-tuned for a task; make one that is: nlpstack finetune --task ner")
    frame(ready, str(model))  # it has a tokenizer, and this its marks
    values = {**record.get("task", {}), **options.overrides, "name": name}
    task = labelled_task(ready, build(TaskConfig, values, "task", {}, "predict"))
    inputs = islice(_inputs(path, name, note), skip, None)
    with session(threads=options.threads), evaluating(ready):
        chunks = iter(lambda: list(islice(inputs, _CHUNK)), [])
        while some := list(islice(chunks, world_size())):  # one for each process; the results are told by all
            said: list[str] = []
            own = (_results(task, ready, chunk, options, said.append) for chunk in some[rank() : rank() + 1])
            for lines, results in gathered((said, [*chain.from_iterable(own)])):
                for line in lines:
                    note(f"{path}: {line}")
                yield from results


def _inputs(path: Path, task: str, note: Note) -> Iterator[tuple[Any, str]]:
    """Examples of a file, without labels, one by one, each beside its text if it is cut into words here."""
    kinds = (".txt", *SUFFIXES_OF[task])
    if corpus_suffix(path, kinds) is None:
        raise DataError(f"{path}: not a kind of file read for {task}; accepted: {', '.join(dict.fromkeys(kinds))}")
    is_text = corpus_suffix(path, [".txt"]) is not None
    if task == "ner" and not is_text:
        for number, words, _ in labelled.tagged_rows(path, note):
            yield labelled.TaggedExample(f"{path}:{number}", words, None), ""
        return
    for where, row in labelled.table_rows(path, note, lines="text" if is_text else ""):
        if task == "generation" and not is_text:
            yield labelled.prompt_of(where, row, labelled=False), ""
            continue
        names = ("text_a", "text_b") if "text_a" in row else ("text",)
        text, other = (*(labelled.text_field(where, row, one) for one in names), None)[:2]
        if task == "ner":
            yield labelled.TaggedExample(where, tuple(_WORD.findall(text)), None), text
        elif task == "generation":
            yield labelled.PromptExample(where, text, None, ()), ""
        else:
            yield labelled.TextExample(where, text, other, None), ""


@torch.inference_mode()
def _results(
    task: LabelledTask, model: LanguageModel, chunk: list[tuple[Any, str]], options: PredictOptions, note: Note
) -> Iterator[dict[str, Any]]:
    examples = [example for example, _ in chunk]
    if isinstance(task, Generation):
        yield from ({"text": text} for text in task.write(model, examples, options.sampling))
        return
    rows = task.encode(examples, f"of the next {len(chunk):,} inputs", note)
    texts = {n: (text, tuple(m.start() for m in _WORD.finditer(text))) for n, (_, text) in enumerate(chunk) if text}
    found = dict(task.results(model, rows, options.batch_tokens, texts))
    yield from (found[number] for number in range(len(chunk)))
