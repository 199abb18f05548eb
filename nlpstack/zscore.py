"""How alike the embeddings of different lines are, and z-scores against it: fitted, applied, saved and read."""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlpstack.errors import ConfigError, DataError
from nlpstack.files import sha256_file

PAIRS = 10_000  # of different lines, at most, whose cosine is taken
_CONSTANT = 1e-6  # a deviation below this share of the mean is fp32's rounding

Vectors = np.ndarray | list[np.ndarray]  # (n, D), or (T, D) for each of n texts


@dataclass(frozen=True, kw_only=True, eq=False)
class ZScore:
    """Mean and deviation of each dimension over a corpus, as one model, layer and pooling embeds it."""

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
        is_list = isinstance(vectors, list)
        out = [np.empty_like(one, np.float32) for one in vectors] if is_list else np.empty_like(vectors, np.float32)
        for one, scored in zip(vectors, out, strict=True):  # row by row, so that little is held in fp64
            scored[:] = (one - self.mean) / scale
        return out


def fit_zscore(blocks: Iterable[Sequence[np.ndarray]], corpus: Path, **about: Any) -> ZScore:
    """Mean and deviation over all vectors (D,), or states (T, D), of a corpus.

    `about` is the model's hash, layer and pooling. Raises DataError if no dimension differs.
    """
    n, mean, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        for part in [np.stack(block)] if block[0].ndim == 1 else block:  # (n, D)
            if not len(part):
                continue
            new = part.astype(np.float64)
            own = new.mean(axis=0)
            shift, total = own - mean, n + len(new)
            squares = squares + ((new - own) ** 2).sum(axis=0) + shift**2 * (n * len(new) / total)  # Chan et al. 1979
            mean = mean + shift * (len(new) / total)
            n = total
    deviation = np.sqrt(squares / max(1, n))
    deviation = np.where(deviation > _CONSTANT * np.abs(mean), deviation, 0)
    if not deviation.any():
        fault = f"no dimension differs among its {n:,} vectors, so there are no z-scores"
        cure = "give a corpus of many different lines (and, with pooling cls, a layer above 0)"
        raise DataError(f"{corpus}: {fault}; {cure}")
    return ZScore(mean=mean, deviation=deviation, corpus=str(corpus), corpus_sha256=sha256_file(corpus), **about)


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """A .npz of named arrays, numbers or texts; the same for the same ones."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # no name of ours is that of another option
    return file.getvalue()


def read_zscore(path: Path, dim: int, **about: Any) -> ZScore:
    """What was saved; ConfigError if it is of another model, layer or pooling than `about` says."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in ZScore.__dataclass_fields__}
        mean, deviation = (values.pop(name).astype(np.float64) for name in ("mean", "deviation"))
        saved = {name: value.item() for name, value in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        cure = "give what 'nlpstack embed --zscore CORPUS' saved"
        raise DataError(f"{path}: cannot be read as z-scores ({error}); {cure}") from error
    others = [
        "another model" if name == "model_sha256" else f"{name} {saved[name]}, not {value}"
        for name, value in about.items()
        if saved[name] != value
    ]
    if others:
        corpus = saved["corpus"]
        raise ConfigError(f"{path}: was fitted with {' and with '.join(others)}; fit anew with --zscore {corpus}")
    if not (mean.shape == deviation.shape == (dim,) and np.isfinite([mean, deviation]).all() and deviation.min() >= 0):
        raise DataError(f"{path}: does not hold {dim:,} finite means and deviations; fit anew with --zscore CORPUS")
    return ZScore(mean=mean, deviation=deviation, **saved)


def mean_cosine(vectors: Vectors, *, generator: torch.Generator) -> tuple[float | None, int]:
    """The mean cosine of pairs of different lines, and how many: all pairs if they are at most PAIRS, else PAIRS drawn.

    Of a line with a state a token, one of its tokens is drawn. A vector of zeros has cosine 0. With fewer than two
    lines there is no mean.
    """
    lines = [one for one in vectors if len(one)] if isinstance(vectors, list) else vectors[:, None]  # of (T, D)
    n = len(lines)
    if n < 2:
        return None, 0
    if n * (n - 1) // 2 <= PAIRS:
        pairs = torch.triu_indices(n, n, offset=1).T
    else:
        first = torch.randint(n, (PAIRS,), generator=generator)
        pairs = torch.stack([first, (first + torch.randint(1, n, (PAIRS,), generator=generator)) % n], dim=1)
    places = torch.rand(len(pairs), 2, generator=generator, dtype=torch.float64)
    total = 0.0
    for pair, place in zip(pairs.tolist(), places.tolist(), strict=True):
        states = (lines[line][int(at * len(lines[line]))] for line, at in zip(pair, place, strict=True))
        one, two = (state.astype(np.float64) for state in states)
        norms = float(np.linalg.norm(one) * np.linalg.norm(two))
        total += float(one @ two) / norms if norms > 0 else 0.0
    return total / len(pairs), len(pairs)
