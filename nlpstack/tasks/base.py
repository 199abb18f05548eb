"""What a task is, and how it is evaluated."""

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from nlpstack.data.batch import Batch
from nlpstack.errors import ModelError
from nlpstack.metrics import Metric
from nlpstack.metrics.text import TextScoring
from nlpstack.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TaskConfig:
    """What a BERT is pretrained on, or what a model is fine-tuned to do; pretraining a GPT leaves nothing to choose."""

    name: Literal["", "classification", "ner", "generation"] = ""  # what for; empty: pretraining
    nsp: bool = True  # also tell whether the second of two texts follows the first; false: one text a row, packed
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15  # of the tokens, that are hidden and to be guessed
    whole_words: bool = False  # hide all tokens of a word or none
    truncate: bool = False  # fine-tuning: cut inputs that are longer than the context, and say how many
    ignore_unknown: bool = False  # leave out examples with a label that training never saw, and say how many
    # classification: the probability from which one of several labels is given
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    class_weights: Literal["none", "balanced"] = "none"  # classification: in the loss; balanced: rare ones count more
    # classification, ner: share of a label that goes to all of them
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    constrained: bool = True  # ner: only tags that may follow each other, by Viterbi's algorithm


class DocumentLayout(NamedTuple):
    """How documents stand in the shards that a task reads."""

    bos_id: int | None = None  # before each document
    eos_id: int | None = None  # after each document
    language: str = ""  # by whose rules sentence ends are found and kept; empty: they are not kept


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EvalConfig:
    """How a model is scored; every value that changes a score is in its signature."""

    window: NonNegativeInt = 0  # input tokens at a time; 0: the model's max_seq_len
    stride: NonNegativeInt = 0  # tokens from one window's start to the next; 0: the window
    max_tokens: NonNegativeInt = 0  # score about the first so many tokens; 0: all
    pseudo_tokens: NonNegativeInt = 1000  # of a BERT: tokens whose pseudo-perplexity is taken, each in its own pass
    batch_tokens: PositiveInt = 4096  # tokens scored at a time; changes speed and memory, not scores
    resamples: NonNegativeInt = 1000  # of the bootstrap
    seed: NonNegativeInt = 0  # of the bootstrap
    # generation: most tokens written after a prompt, whose text is scored; 0: the loss alone, as in training
    new_tokens: NonNegativeInt = 128
    beams: PositiveInt = 1  # generation: 1 is greedy
    lowercase: bool = False  # BLEU, chrF and exact match of lower-cased texts; ROUGE always has them so
    stemming: bool = False  # ROUGE: of English word stems
    mean_references: bool = False  # ROUGE: the mean over references, not the best
    unicode_words: bool = False  # ROUGE: words of any script, not of a-z and 0-9 alone

    @property
    def texts(self) -> TextScoring:
        """How texts are compared."""
        return TextScoring(**{name: getattr(self, name) for name in TextScoring.__dataclass_fields__})

    def __post_init__(self) -> None:
        if self.window and self.stride > self.window:
            raise ValueError(f"stride={self.stride} is more than window={self.window}: tokens would go unscored")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ScoreConfig:
    """What a recipe of an evaluation asks for, beside how models are scored."""

    # of all finished runs, score those of this task; empty: all
    task: Literal["", "causal_lm", "masked_lm", "classification", "ner", "generation"] = ""
    metrics: list[str] = field(default_factory=list)  # only these; none: all
    baselines: bool = True  # what guessing gets, beside the model
    examples: NonNegativeInt = 0  # so many of the worst, and scores by length and label


class Task(Protocol):
    """The glue between text, a model, its loss and its scores."""

    name: str
    tokenizer: Tokenizer
    target: str  # the score that training watches
    scores: type[Metric]  # what `metric` makes
    loss_chunk: int = 1  # rows whose logits are held at a time
    layout: DocumentLayout = DocumentLayout()
    predicted_share: float = 0.0  # of the tokens of a batch, that the model has to predict

    def loss(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Loss terms, each summed over its targets; their counts are the batch's `n_targets`."""
        raise ModelError(f"{self.name} is no task to train for")

    def eval_batches(self, model: Any, data: Any, config: EvalConfig) -> Iterator[Any]:
        """What there is to score, in batches with a `to(device)`: of labelled data all rows, under the token budget."""
        yield from data.batches(config.batch_tokens)

    def metric(self, config: EvalConfig) -> Metric:
        """An empty metric for `score` to fill."""
        return self.scores()

    def score(self, model: Any, batch: Any, metric: Any) -> None:
        """Run the model on a batch and count the outcome."""

    def signature(self, model: Any, config: EvalConfig, dtype: str) -> str:
        """How the scores are made, in the form name:value|name:value; ConfigError for what cannot be scored."""
        parts = {**self.reading(model, config), "tok": self.tokenizer.hash[:12], "dtype": dtype}
        words = {name: ("no", "yes")[part] if isinstance(part, bool) else part for name, part in parts.items()}
        return "|".join(f"{name}:{word}" for name, word in words.items())

    def reading(self, model: Any, config: EvalConfig) -> dict[str, object]:
        """All that changes the scores, beside tokenizer and dtype."""
