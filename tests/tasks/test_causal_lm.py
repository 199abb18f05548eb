"""The next-token task: its loss, its perplexity window by window against plain float64, its prompts and signature."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nlpstack.data.packing import PackedBlocks
from nlpstack.data.readers import Piece
from nlpstack.data.shards import ShardSpec, TokenShards, load_or_tokenize
from nlpstack.errors import ConfigError, DataError
from nlpstack.metrics import Score
from nlpstack.model import GPT, IGNORE_INDEX, TransformerConfig
from nlpstack.samples import sample
from nlpstack.tasks import CausalLM, EvalConfig
from nlpstack.tasks.causal_lm import PROMPT_CHARS, PROMPT_WORDS
from nlpstack.tokenizer import SentencePieceTokenizer, TokenizerConfig, train_tokenizer
from nlpstack.train.trainer import evaluate

SHAPE = TransformerConfig(max_seq_len=16, dim=16, n_layers=2, n_heads=2, positions="rotary")


@pytest.fixture(scope="module")
def text() -> str:
    return sample("shakespeare").read_text(encoding="utf-8")[:40_000]


@pytest.fixture(scope="module")
def task(text: str) -> CausalLM:
    return CausalLM(train_tokenizer([text], TokenizerConfig(vocab_size=400)))


@pytest.fixture(scope="module")
def model(task: CausalLM) -> GPT:
    made = GPT.create(replace(SHAPE, vocab_size=task.tokenizer.vocab_size), seed=0, tokenizer=task.tokenizer)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter *= 10  # far from a uniform guess
    return made.eval()


def shards_of(tokenizer: SentencePieceTokenizer, texts: Sequence[str], cache: Path, *, bos: bool = True) -> TokenShards:
    spec = ShardSpec(
        split_key=str(abs(hash(tuple(texts)))),
        tokenizer_hash=f"{tokenizer.hash[:10]}{bos}",
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id if bos else None,
        eos_id=tokenizer.eos_id,
    )
    pieces = [Piece(text, last=True) for text in texts]
    return load_or_tokenize(
        lambda: pieces, lambda group: tokenizer.encode_batch(group, threads=1), spec, cache, lambda _: None
    )


def texts_of(text: str, lengths: Sequence[int]) -> list[str]:
    """Documents of about so many characters, cut one after the other."""
    ends = np.cumsum([0, *lengths]).tolist()
    return [text[start:stop] for start, stop in pairwise(ends)]


def by_hand(
    model: GPT, task: CausalLM, texts: Sequence[str], window: int, stride: int, bos: bool
) -> tuple[float, int, int]:
    """Summed loss, tokens and bytes scored: each token alone, in float64, after what its window holds before it."""
    double = copy.deepcopy(model).double()
    total, n_tokens, n_bytes = 0.0, 0, 0
    for text in texts:
        row = ([task.tokenizer.bos_id] if bos else []) + task.tokenizer.encode(text)
        done = 0
        for start in range(0, len(row) - 1, stride):
            stop = min(start + window, len(row) - 1)
            if stop <= done:
                break
            with torch.no_grad():
                logits = double(torch.tensor([row[start:stop]]))[0].double()
            for place in range(done + 1, stop + 1):
                total -= logits[place - start - 1].log_softmax(dim=-1)[row[place]].item()
                n_tokens += 1
                n_bytes += len(task.tokenizer.token_bytes(row[place]))
            done = stop
    return total, n_tokens, n_bytes


def scores(model: GPT, task: CausalLM, shards: TokenShards, **values: int) -> dict[str, Score]:
    return evaluate(model, task, shards, EvalConfig(resamples=20, **values), dtype="fp32")


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 8), (16, 5), (7, 1), (0, 0), (1, 1)])
@pytest.mark.parametrize("bos", [True, False])
def test_scores_are_those_of_each_token_after_its_context(
    model: GPT, task: CausalLM, text: str, tmp_path: Path, window: int, stride: int, bos: bool
) -> None:
    texts = texts_of(text, [60, 1, 20, 9])
    shards = shards_of(task.tokenizer, texts, tmp_path, bos=bos)
    nll, n_tokens, n_bytes = by_hand(model, task, texts, window or 16, stride or window or 16, bos)
    found = scores(model, task, shards, window=window, stride=stride)
    n_words = sum(len(part.split()) for part in texts if bos or len(task.tokenizer.encode(part)) > 1)
    wanted = {
        "loss": (nll / n_tokens, n_tokens),
        "perplexity": (math.exp(nll / n_tokens), n_tokens),
        "word_perplexity": (math.exp(nll / n_words), n_words),
        "bits_per_byte": (nll / math.log(2) / n_bytes, n_bytes),
    }
    for name, (value, n) in wanted.items():
        assert found[name].value == pytest.approx(value, rel=1e-4), name
        assert found[name].n == n, name
    if bos:
        assert n_bytes == len("".join(texts).encode())  # every byte of the text is paid for


def test_more_context_makes_a_score_no_other_scores_windows(
    model: GPT, task: CausalLM, text: str, tmp_path: Path
) -> None:
    shards = shards_of(task.tokenizer, texts_of(text, [400]), tmp_path)
    overlapping, apart = (scores(model, task, shards, window=16, stride=stride) for stride in (4, 16))
    assert overlapping["loss"].n == apart["loss"].n
    assert overlapping["loss"].value != pytest.approx(apart["loss"].value, rel=1e-3)


def test_how_many_tokens_are_scored_at_a_time_changes_no_score(
    model: GPT, task: CausalLM, text: str, tmp_path: Path
) -> None:
    shards = shards_of(task.tokenizer, texts_of(text, [37 * (n % 5) + 1 for n in range(14)]), tmp_path)
    wanted = scores(model, task, shards, stride=8)
    for batch_tokens in (1, 40, 300):
        found = scores(model, task, shards, stride=8, batch_tokens=batch_tokens)
        for name, score in found.items():
            assert score[:4] == pytest.approx(wanted[name][:4], rel=1e-5)


def test_scoring_a_part_gives_word_perplexity_of_that_part(
    model: GPT, task: CausalLM, text: str, tmp_path: Path
) -> None:
    shards = shards_of(task.tokenizer, [text[:4000]], tmp_path)
    whole, part = scores(model, task, shards), scores(model, task, shards, max_tokens=len(shards) // 2)
    assert part["loss"].n == pytest.approx(whole["loss"].n / 2, abs=16)
    assert part["word_perplexity"].n == pytest.approx(whole["word_perplexity"].n / 2, rel=0.05)
    assert math.log(part["word_perplexity"].value) == pytest.approx(math.log(whole["word_perplexity"].value), rel=0.1)


def test_text_without_a_second_token_cannot_be_scored(model: GPT, task: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to score"):
        scores(model, task, shards_of(task.tokenizer, ["a"], tmp_path, bos=False))


def test_the_model_is_left_in_the_mode_it_was_in(model: GPT, task: CausalLM, tmp_path: Path) -> None:
    shards = shards_of(task.tokenizer, ["some text"], tmp_path)
    for training in (True, False):
        model.train(training)
        scores(model, task, shards)
        assert model.training == training


def test_dropout_is_off_while_scoring(task: CausalLM, text: str, tmp_path: Path) -> None:
    shards = shards_of(task.tokenizer, texts_of(text, [200]), tmp_path)
    shape = replace(SHAPE, vocab_size=task.tokenizer.vocab_size, dropout=0.5)
    model = GPT.create(shape, seed=0).train()
    assert scores(model, task, shards) == scores(model, task, shards)


# -- windows and signature -------------------------------------------------------------------------------------------


def test_a_window_longer_than_the_positions_is_refused(task: CausalLM, tmp_path: Path) -> None:
    shape = replace(SHAPE, vocab_size=task.tokenizer.vocab_size, positions="learned")
    shards = shards_of(task.tokenizer, ["some text"], tmp_path)
    with pytest.raises(ConfigError, match=r"eval.window=17 is more than the model's max_seq_len=16"):
        scores(GPT.create(shape, seed=0), task, shards, window=17)


def test_a_stride_beyond_the_window_is_refused(model: GPT, task: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go unscored"):
        EvalConfig(window=8, stride=9)
    with pytest.raises(ConfigError, match=r"eval.stride=17 is more than the window of 16"):
        scores(model, task, shards_of(task.tokenizer, ["some text"], tmp_path), stride=17)


def test_the_signature_says_all_that_changes_a_score(model: GPT, task: CausalLM, tmp_path: Path) -> None:
    found = scores(
        model, task, shards_of(task.tokenizer, ["some text here"], tmp_path), stride=4, max_tokens=50, seed=9
    )
    tokenizer = task.tokenizer.hash[:12]
    assert {score.signature for score in found.values()} == {
        f"window:16|stride:4|bos:yes|eos:no|max_tokens:50|tok:{tokenizer}|dtype:fp32|unit:window|resamples:20|seed:9"
    }
    plain = task.signature(model, EvalConfig(), "bf16")
    assert plain == f"window:16|stride:16|bos:yes|eos:no|max_tokens:all|tok:{tokenizer}|dtype:bf16"


# -- loss ------------------------------------------------------------------------------------------------------------


def test_the_training_loss_is_summed_over_the_labels_that_count(
    model: GPT, task: CausalLM, text: str, tmp_path: Path
) -> None:
    blocks = PackedBlocks(shards_of(task.tokenizer, texts_of(text, [60] * 9), tmp_path), 16, seed=0)
    batch = blocks.batch([(0, index) for index in range(len(blocks))])
    assert (batch.labels["lm"] == IGNORE_INDEX).any()
    (name, found) = next(iter(task.loss(model, batch).items()))
    logits = model(batch.tokens)
    wanted = F.cross_entropy(
        logits.flatten(0, 1), batch.labels["lm"].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert batch.n_targets.keys() == {name} == {"lm"}


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_beginnings_of_lines_of_the_split_they_come_from(task: CausalLM, text: str, tmp_path: Path) -> None:
    val = text[30_000:]
    prompts = task.prompts(shards_of(task.tokenizer, [val], tmp_path), 12)
    assert len(prompts) == 12
    assert len(set(prompts)) > 8
    beginnings = [" ".join(line.split()[:PROMPT_WORDS]) for line in val.split("\n")]
    for prompt in prompts:
        assert prompt in beginnings
        assert 2 <= len(prompt.split()) <= PROMPT_WORDS


@pytest.mark.parametrize(
    "val",
    [
        "one",
        "one line without an end and with many words in it",
        "      indented   text\n" * 50,
        "\n" * 700 + "words after much white space",
        "words before much white space" + " \n" * 700,
        "oneword\n" * 200,
        "日本語の文章には空白がない。" * 80,
        "x" * 2000,
    ],
)
def test_every_text_has_prompts_of_a_few_words_that_hold_something(task: CausalLM, tmp_path: Path, val: str) -> None:
    prompts = task.prompts(shards_of(task.tokenizer, [val], tmp_path), 5)
    assert len(prompts) == 5
    for prompt in prompts:
        assert prompt.strip()
        assert "\n" not in prompt
        assert len(prompt) <= PROMPT_CHARS
        assert " ".join(prompt.split()) in " ".join(val.split())


def test_no_prompts_are_made_where_none_are_asked(task: CausalLM, tmp_path: Path) -> None:
    assert task.prompts(shards_of(task.tokenizer, ["some text"], tmp_path), 0) == []


def test_writing_shortens_a_prompt_to_the_models_context(model: GPT, task: CausalLM) -> None:
    long = "these words are many more than the context of so small a model holds" * 3
    assert len(task.tokenizer.encode(long)) > SHAPE.max_seq_len
    (short, cut) = task.write(model, ["good words", long], 5, seed=1)
    assert short["prompt"] == "good words"
    assert long.startswith(cut["prompt"])
    assert 8 <= len(task.tokenizer.encode(cut["prompt"])) <= SHAPE.max_seq_len
    assert short["text"]
    assert task.write(model, ["good words", long], 5, seed=1) == [short, cut]
