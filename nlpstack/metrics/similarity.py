"""How alike embeddings are: of pairs of texts, against what people say of them, and of any two texts."""

from dataclasses import replace
from typing import Any

import numpy as np

from nlpstack.metrics.classification import LabelScores
from nlpstack.metrics.intervals import Units

PAIRS = 10_000  # of different lines, at most, whose cosine is taken

Vectors = np.ndarray | list[np.ndarray]  # (n, D), or (T, D) for each of n texts


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    """The cosine of two vectors (D,), computed in fp64; 0 where one is all zeros."""
    one, two = one.astype(np.float64), two.astype(np.float64)
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norms if norms > 0 else 0.0


def mean_cosine(vectors: Vectors, *, seed: int = 0) -> tuple[float | None, int]:
    """The mean cosine of pairs of different lines, and how many: all pairs if they are at most PAIRS, else PAIRS drawn.

    Of a line with a state a token, one of its tokens is drawn. With fewer than two lines there is no mean.
    """
    lines = [one for one in vectors if len(one)] if isinstance(vectors, list) else vectors[:, None]  # of (T, D)
    n, rng = len(lines), np.random.default_rng(seed)
    if n < 2:
        return None, 0
    if n * (n - 1) // 2 <= PAIRS:
        pairs = np.column_stack(np.triu_indices(n, k=1))
    else:
        first = rng.integers(n, size=PAIRS)
        pairs = np.column_stack((first, (first + rng.integers(1, n, size=PAIRS)) % n))
    drawn = zip(pairs.tolist(), rng.random(pairs.shape).tolist(), strict=True)  # lines, and where in them
    states = ([lines[n][int(at * len(lines[n]))] for n, at in zip(*one, strict=True)] for one in drawn)
    return sum(cosine(one, two) for one, two in states) / len(pairs), len(pairs)


class SimilarityScores(LabelScores):
    """Correlations of cosines with the scores of pairs, and the mean cosine of all their texts."""

    def __init__(self) -> None:
        super().__init__()
        self._vectors: dict[int, np.ndarray] = {}  # text -> (D,); texts 2 n and 2 n + 1 are pair n

    def add(self, text: int, vector: np.ndarray, gold: float) -> None:
        """Count a text's vector; with the second one of a pair, the pair."""
        self._vectors[text] = vector
        if (other := self._vectors.get(text ^ 1)) is not None:
            self.update(cosine(vector, other), gold, number=text // 2)

    def parts(self) -> list[Units]:
        """What was counted, pair by pair; a squared error of cosines would say nothing."""
        return [replace(super().parts()[-1], unit="pair")]

    def details(self) -> dict[str, Any]:
        """The mean cosine of random texts (Ethayarajh 2019, section 4.1), as they are and as z-scores."""
        from sklearn.preprocessing import StandardScaler

        vectors = np.stack([self._vectors[text] for text in sorted(self._vectors)]).astype(np.float64)
        scaled = StandardScaler().fit_transform(vectors)
        return {"mean_cosine": mean_cosine(vectors)[0], "mean_cosine_zscored": mean_cosine(scaled)[0]}
