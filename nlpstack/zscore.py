"""z-scores of embeddings, against what all of them have in common: fitted, applied, saved and read."""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nlpstack.errors import ConfigError, DataError
from nlpstack.files import sha256_file
from nlpstack.metrics.similarity import Vectors

_CONSTANT = 1e-6  # a deviation below this share of the mean is fp32's rounding


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
