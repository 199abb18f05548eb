"""What `nlpstack embed` does: a model and texts in, one vector a text, or one a token, out."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlpstack.data.batch import by_length, pad_batch
from nlpstack.data.readers import PACKED, SUFFIXES, corpus_suffix, json_text, mute, text_lines
from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.files import check_output, sha256_file, write_file
from nlpstack.metrics.classification import Vectors, mean_cosine
from nlpstack.model import GPT, LanguageModel
from nlpstack.model.heads import mean_pooled
from nlpstack.start import frame, open_model
from nlpstack.tasks.labelled import Cut
from nlpstack.tokenizer.base import utf8
from nlpstack.train.runtime import session

POOLINGS = ("mean", "cls", "token")
_CHUNK = 1024  # texts that are read, and put in order of length, at a time
_CONSTANT = 1e-6  # a deviation below this share of the mean is fp32's rounding


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How texts become vectors, and where that is computed."""

    pooling: str = "mean"  # over the states of all tokens; cls: the state of [CLS]; token: all but the special ones
    layer: int | None = None  # 0: the embeddings; negative: from the end; None: the last
    zscore: str | Path | None = None  # a corpus to fit on, or a .npz with what was fitted
    batch_tokens: int = 4096  # of a batch, padding included; a longer text is a batch of its own
    truncate: bool = False  # cut texts that are longer than the context
    device: str = "auto"  # for a model that is read from a folder
    threads: int | None = None  # None: as many as now


@dataclass(frozen=True, kw_only=True, eq=False)
class ZScore:
    """z-scores: mean and deviation of each dimension over a corpus, as one model, layer and pooling embeds it."""

    mean: np.ndarray  # (D,) fp64
    deviation: np.ndarray  # (D,) fp64; 0: the dimension is constant, and becomes 0
    model_sha256: str  # of the core's weights
    layer: int
    pooling: str
    corpus: str
    corpus_sha256: str

    @property
    def n_constant(self) -> int:
        """Dimensions without deviation."""
        return int((self.deviation == 0).sum())

    def apply(self, vectors: Vectors) -> Vectors:
        """The same shapes in fp32: each dimension minus its mean, over its deviation."""
        scale = np.where(self.deviation > 0, self.deviation, np.inf)
        out = [one.astype(np.float32) for one in vectors] if isinstance(vectors, list) else vectors.astype(np.float32)
        for one in out:  # row by row, so that little is held in fp64
            one[:] = (one - self.mean) / scale
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """The vectors in the order of the texts, and what is to be known of them."""

    vectors: Vectors  # fp32
    pooling: str
    layer: int
    cut: Cut
    mean_cosine: float | None = None  # of pairs of different lines, before z-scoring; None: there are no two
    mean_cosine_zscored: float | None = None
    n_pairs: int = 0
    zscore: ZScore | None = None
    corpus_cut: Cut = field(default_factory=Cut)  # of the corpus that z-scores were fitted on
    out: str | None = None
    zscore_out: str | None = None  # where what was fitted is saved


def embed(
    model: LanguageModel | str | Path,
    source: str | Path | Sequence[str],
    options: EmbedOptions | None = None,
    *,
    out: str | Path | None = None,
) -> Embeddings:
    """The contextual embeddings of a file's lines, or of a list of texts, in their order; saved where `out` is given.

    A file is a .txt, one text a line, or a .jsonl with `text`, each also .gz or .zst. `out` is a .npy, one row a text;
    with pooling `token` a .npz, one array a text. z-scores that are fitted are saved beside it.
    """
    options = options or EmbedOptions()
    path = Path(source) if isinstance(source, str | Path) else None
    corpus = None if options.zscore is None else Path(options.zscore)
    saved = None
    _check(options, path, corpus, out)
    with session(threads=options.threads):
        encoder = _Encoder(model, options)
        if corpus is not None and corpus.suffix.lower() == ".npz":  # refused before the work is done
            saved = read_zscore(corpus, encoder.model.config.dim, **encoder.about())
        if not (rows := [one for block in encoder.blocks(_texts(path or source)) for one in block]):
            raise DataError(f"{path}: is empty; write one text a line" if path else "there are no texts")
        vectors: Vectors = rows if options.pooling == "token" else np.stack(rows)
        del rows  # or they would be held to the end
        cut, encoder.frame.cut = encoder.frame.cut, Cut()
        found = Embeddings(vectors=vectors, pooling=options.pooling, layer=encoder.layer, cut=cut, zscore=saved)
        if corpus is not None and saved is None:
            is_known = path is not None and corpus.samefile(path)
            blocks = ([one] for one in vectors) if is_known else encoder.blocks(_texts(corpus))
            fitted = fit_zscore(blocks, corpus, **encoder.about())
            found = replace(found, zscore=fitted, corpus_cut=encoder.frame.cut)
    before, n_pairs = mean_cosine(vectors)
    found = replace(found, mean_cosine=before, n_pairs=n_pairs, out=None if out is None else str(out))
    if found.zscore is not None:
        vectors = found.zscore.apply(vectors)
        found = replace(found, vectors=vectors, mean_cosine_zscored=mean_cosine(vectors)[0])
    if out is not None:
        if found.zscore is not None and found.zscore is not saved:
            target = Path(f"{Path(out)}.zscore.npz")
            found = replace(found, zscore_out=str(target))
            write_file(target, _packed(vars(found.zscore)))
        write_file(Path(out), _packed(vectors))
    return found


def _check(options: EmbedOptions, path: Path | None, corpus: Path | None, out: str | Path | None) -> None:
    """Whatever cannot be meant is refused before a model is read for nothing."""
    if options.pooling not in POOLINGS:
        raise ConfigError(f"pooling '{options.pooling}' is unknown; give one of {', '.join(POOLINGS)}")
    if options.batch_tokens < 1:
        raise ConfigError(f"batch_tokens={options.batch_tokens}: must be at least 1")
    accepted = f"accepted: {', '.join(SUFFIXES)}, each also with {' or '.join(PACKED)}"
    if path is not None and corpus_suffix(path) is None:
        raise DataError(f"{path}: not a kind of file that embed reads; {accepted}")
    if corpus is not None and corpus.suffix.lower() != ".npz" and corpus_suffix(corpus) is None:
        raise DataError(f"{corpus}: no corpus to fit z-scores on; {accepted}; or the .npz of fitted ones")
    for file in (path, corpus):
        if file is not None and not file.is_file():
            raise DataError(f"{file}: no such file")
    if out is None:
        return
    target, suffix = Path(out), ".npz" if options.pooling == "token" else ".npy"
    if target.suffix.lower() != suffix:
        raise ConfigError(f"{out}: the name must end in {suffix} with pooling {options.pooling}")
    check_output(target)
    if corpus is not None and target.exists() and target.samefile(corpus):
        raise ConfigError(f"{out}: holds the z-scores that are asked for; give another name")


def _texts(source: Path | Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each text behind the place where it stands; an empty one is an error, since rows are to match lines."""
    texts = text_lines(source, mute) if isinstance(source, Path) else source
    as_json = isinstance(source, Path) and corpus_suffix(source) == ".jsonl"
    for number, text in enumerate(texts, 1):
        where = f"{source}:{number}" if isinstance(source, Path) else f"text {number}"
        if as_json and text.strip():
            text = json_text(where, text)
        if not text.strip():
            raise DataError(f"{where}: is empty, and each line becomes a row; remove the line or write a text")
        try:
            utf8(text)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        yield where, text


class _Encoder:
    def __init__(self, model: LanguageModel | str | Path, options: EmbedOptions) -> None:
        self.model, self.name = open_model(model, device=options.device)
        self.options = options
        depth = self.model.config.n_layers
        layer = depth if options.layer is None else options.layer
        if not -depth - 1 <= layer <= depth:
            there = f"has layers 0 (the embeddings) to {depth}; from the end, -1 to {-depth - 1}"
            raise ConfigError(f"layer {layer}: {self.name} {there}")
        self.layer = layer % (depth + 1)
        if options.pooling == "cls" and isinstance(self.model, GPT):
            fault = f"{self.name} is a GPT, whose first token sees nothing of the text"
            raise ConfigError(f"pooling cls: {fault}; use mean or token")
        self.frame = frame(self.model, self.name, truncate=options.truncate)

    def blocks(self, texts: Iterator[tuple[str, str]]) -> Iterator[list[np.ndarray]]:
        """The vectors (D,), or states (T, D), of the texts in order, a block of texts at a time."""
        with evaluating(self.model):
            while chunk := list(islice(texts, _CHUNK)):
                rows = [tokens for tokens, _ in self.frame.rows([(where, text, None) for where, text in chunk])]
                found: dict[int, np.ndarray] = {}
                for batch in by_length([len(row) for row in rows], self.options.batch_tokens):
                    found |= zip(batch, self._pooled([rows[at] for at in batch]), strict=True)
                for at, one in found.items():
                    if not np.isfinite(one).all():
                        raise ModelError(f"{chunk[at][0]}: its states in {self.name} are not finite; mend the weights")
                yield [found[at] for at in range(len(chunk))]

    @torch.inference_mode()
    def _pooled(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        batch = pad_batch(rows, None, self.frame.pad_id).to(self.model.transformer.tokens.weight.device)
        hidden: Tensor = self.model.transformer(batch.tokens, mask=batch.mask, n_layers=self.layer).float()  # (B, T, D)
        if self.options.pooling == "cls":
            return list(hidden[:, 0].cpu().numpy())
        if self.options.pooling == "mean":
            return list(mean_pooled(hidden, batch.mask).cpu().numpy())
        first, last = len(self.frame.cls), len(self.frame.sep)
        return [one[first : len(row) - last].copy() for one, row in zip(hidden.cpu().numpy(), rows, strict=True)]

    def about(self) -> dict[str, object]:
        """What z-scores belong to. The hash is of the core's weights in fp32, whatever file they came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.transformer.state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
        return {"model_sha256": digest.hexdigest(), "layer": self.layer, "pooling": self.options.pooling}


def fit_zscore(blocks: Iterable[Sequence[np.ndarray]], corpus: Path, **about: Any) -> ZScore:
    """What is fitted on all vectors (D,), or states (T, D), of a corpus; DataError if no dimension differs in it."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for block in blocks:
        for part in [np.stack(block)] if block[0].ndim == 1 else block:  # (n, D)
            if len(part):
                scaler.partial_fit(part.astype(np.float64))
    mean, deviation = scaler.mean_, np.sqrt(scaler.var_)
    deviation = np.where(deviation > _CONSTANT * np.abs(mean), deviation, 0)
    if not deviation.any():
        fault = f"no dimension differs among its {scaler.n_samples_seen_:,} vectors, so there are no z-scores"
        cure = "give a corpus of many different lines (and, with pooling cls, a layer above 0)"
        raise DataError(f"{corpus}: {fault}; {cure}")
    return ZScore(mean=mean, deviation=deviation, corpus=str(corpus), corpus_sha256=sha256_file(corpus), **about)


def read_zscore(path: Path, dim: int, **about: Any) -> ZScore:
    """What was saved; ConfigError if it is of another model, layer or pooling than `about` says."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if (size := sum(one.file_size for one in file.zip.infolist())) > 100 * dim + 65536:
                raise ValueError(f"{size:,} bytes are too many for {dim:,} dimensions")
            values = {name: file[name] for name in ZScore.__dataclass_fields__}
        mean, deviation = (values.pop(name).astype(np.float64) for name in ("mean", "deviation"))
        saved = {name: value.item() for name, value in values.items()}
    except Exception as error:  # of numpy, zipfile or zlib, which have many
        cure = "give what 'nlpstack embed --zscore CORPUS' saved"
        raise DataError(f"{path}: cannot be read as z-scores ({error}); {cure}") from error
    if wrong := {k: v for k, v in about.items() if saved[k] != v}:
        others = ["another model" if k == "model_sha256" else f"{k} {saved[k]}, not {v}" for k, v in wrong.items()]
        cure = f"fit anew with --zscore {saved['corpus']}"
        raise ConfigError(f"{path}: was fitted with {' and with '.join(others)}; {cure}")
    if not (mean.shape == deviation.shape == (dim,) and np.isfinite([mean, deviation]).all() and deviation.min() >= 0):
        raise DataError(f"{path}: does not hold {dim:,} finite means and deviations; fit anew with --zscore CORPUS")
    return ZScore(mean=mean, deviation=deviation, **saved)


def _packed(arrays: Vectors | Mapping[str, Any]) -> bytes:
    """A .npy of one row a text, or a .npz of named arrays or of one array a text, numbered from 1."""
    file = io.BytesIO()
    if isinstance(arrays, np.ndarray):
        np.save(file, arrays, allow_pickle=False)
    else:
        by_name = {f"line-{n:07}": one for n, one in enumerate(arrays, 1)} if isinstance(arrays, list) else arrays
        np.savez(file, **by_name)  # no name of ours is that of another option
    return file.getvalue()
