"""The task of a BERT: its scores against plain float64, one row at a time, and what it refuses."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nlpstack.data.corpus import SEGMENTER, split_sentences
from nlpstack.data.readers import Piece
from nlpstack.data.shards import ShardSpec, TokenShards, load_or_tokenize
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.model import BERT, TransformerConfig
from nlpstack.samples import sample
from nlpstack.tasks import EvalConfig, MaskedLM, TaskConfig
from nlpstack.tokenizer import SentencePieceTokenizer, TokenizerConfig, train_tokenizer
from nlpstack.train.trainer import evaluate

SHAPE = TransformerConfig(
    max_seq_len=32, dim=16, n_layers=2, n_heads=2, causal=False, pre_norm=False, norm_eps=1e-12, n_segments=2
)
QUICK = EvalConfig(resamples=0, pseudo_tokens=60)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with gzip.open(sample("abstracts") / "val.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(12), strict=False)]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> SentencePieceTokenizer:
    return train_tokenizer(texts, TokenizerConfig(vocab_size=400))


@pytest.fixture(scope="module")
def shards(
    texts: list[str], tokenizer: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> TokenShards:
    spec = ShardSpec(
        split_key="k",
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        bos_id=None,
        eos_id=None,
        sentences=SEGMENTER,
    )
    return load_or_tokenize(
        lambda: [Piece(text, last=True) for text in texts],
        lambda parts: tokenizer.encode_batch(parts, threads=1),
        spec,
        tmp_path_factory.mktemp("cache"),
        lambda _: None,
        segment=lambda text: split_sentences(text, "en"),
    )


@pytest.fixture(scope="module")
def model(tokenizer: SentencePieceTokenizer) -> BERT:
    made = BERT.create(replace(SHAPE, vocab_size=tokenizer.vocab_size), seed=0, tokenizer=tokenizer)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter *= 10  # far from an even guess
            else:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return made.eval()


def scores(task: MaskedLM, model: BERT, shards: TokenShards, config: EvalConfig = QUICK) -> dict[str, float]:
    found = evaluate(model, task, shards, config, dtype="fp32")
    return {name: score.value for name, score in found.items()}


@pytest.mark.parametrize("nsp", [True, False])
def test_scores_are_those_of_plain_float64_row_by_row(
    nsp: bool, model: BERT, tokenizer: SentencePieceTokenizer, shards: TokenShards
) -> None:
    task = MaskedLM(tokenizer, TaskConfig(nsp=nsp, mask_share=0.3), 32)
    found = scores(task, model, shards)
    wide = BERT(model.config)
    wide.load_state_dict(model.state_dict())
    wide = wide.double().eval()
    rows = task.scored_rows(shards, QUICK)
    nll, hits, nsp_nll, nsp_hits = [], [], [], []
    for index in range(rows.n_rows):
        row, hidden = rows.masked(0, index)
        segments = (torch.arange(len(row.tokens)) >= row.n_first).long()[None] if nsp else None
        states = wide(torch.from_numpy(hidden.tokens)[None], segments=segments)
        logits = wide.mlm_logits(states)[0, torch.from_numpy(hidden.places)]
        labels = torch.from_numpy(hidden.labels)
        nll += F.cross_entropy(logits, labels, reduction="none").tolist()
        hits += (logits.argmax(dim=-1) == labels).tolist()
        if nsp:
            logits = wide.nsp_logits(states)
            nsp_nll.append(F.cross_entropy(logits, torch.tensor([row.label])).item())
            nsp_hits.append(int(logits.argmax()) == row.label)
    assert found["mlm_loss"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert found["mlm_accuracy"] == pytest.approx(np.mean(hits))
    assert ("nsp_loss" in found) == nsp
    if nsp:
        assert found["nsp_loss"] == pytest.approx(np.mean(nsp_nll), rel=1e-5)
        assert found["nsp_accuracy"] == pytest.approx(np.mean(nsp_hits))
        assert found["loss"] == pytest.approx(found["mlm_loss"] + found["nsp_loss"])


def test_pseudo_perplexity_is_that_of_each_token_hidden_alone(
    model: BERT, tokenizer: SentencePieceTokenizer, shards: TokenShards
) -> None:
    task = MaskedLM(tokenizer, TaskConfig(nsp=False), 32)
    config = replace(QUICK, pseudo_tokens=60)  # two stretches of 30: the first, and the one in the middle
    found = scores(task, model, shards, config)["pseudo_perplexity"]
    n_stretches = math.ceil(len(shards) / 30)
    losses = []
    for number in (0, n_stretches // 2):
        tokens = shards.read(number * 30, min(number * 30 + 30, len(shards)))
        for place, token in enumerate(tokens.tolist()):
            row = [tokenizer.cls_id, *tokens.tolist(), tokenizer.sep_id]
            row[place + 1] = tokenizer.mask_id
            with torch.no_grad():
                logits = model.mlm_logits(model(torch.tensor([row])))[0, place + 1]
            losses.append(F.cross_entropy(logits, torch.tensor(token)).item())
    assert found == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_scores_do_not_depend_on_how_rows_are_batched(
    model: BERT, tokenizer: SentencePieceTokenizer, shards: TokenShards
) -> None:
    task = MaskedLM(tokenizer, TaskConfig(whole_words=True), 32)
    one, many = (scores(task, model, shards, replace(QUICK, batch_tokens=n)) for n in (32, 2000))
    assert one == pytest.approx(many, rel=1e-5)
    assert one != pytest.approx(scores(task, model, shards, replace(QUICK, seed=1)), rel=1e-5)


def test_max_tokens_ends_scoring_and_0_pseudo_tokens_leave_that_score_out(
    model: BERT, tokenizer: SentencePieceTokenizer, shards: TokenShards
) -> None:
    task = MaskedLM(tokenizer, TaskConfig(), 32)
    config = EvalConfig(resamples=0, pseudo_tokens=0, max_tokens=200, batch_tokens=64)
    found = evaluate(model, task, shards, config, dtype="fp32")
    assert "pseudo_perplexity" not in found
    assert 200 / 32 <= found["nsp_loss"].n <= 200 / 16


def test_the_signature_says_how_scores_were_made(model: BERT, tokenizer: SentencePieceTokenizer) -> None:
    task = MaskedLM(tokenizer, TaskConfig(mask_share=0.2, whole_words=True), 32)
    assert task.signature(model, EvalConfig(seed=3), "fp32") == (
        "mask:0.2|whole_words:yes|nsp:yes|context:32|max_tokens:all|pseudo_tokens:1000|mask_seed:3"
        f"|tok:{tokenizer.hash[:12]}|dtype:fp32"
    )
    with pytest.raises(ConfigError, match=r"eval\.window"):
        task.signature(model, EvalConfig(window=16), "fp32")


@pytest.mark.parametrize("lacking", ["cls", "sep", "mask"])
def test_a_tokenizer_without_a_berts_tokens_is_refused(lacking: str, tokenizer: SentencePieceTokenizer) -> None:
    class Poorer:
        def __getattr__(self, name: str) -> object:
            return None if name == f"{lacking}_id" else getattr(tokenizer, name)

    with pytest.raises(ModelError, match=rf"no \[{lacking.upper()}\] token"):
        MaskedLM(Poorer(), TaskConfig(), 32)  # type: ignore[arg-type]


def test_one_document_cannot_be_paired(tokenizer: SentencePieceTokenizer, tmp_path: Path, texts: list[str]) -> None:
    spec = ShardSpec(split_key="one", tokenizer_hash="t", vocab_size=400, bos_id=None, eos_id=None, sentences=SEGMENTER)
    shards = load_or_tokenize(
        lambda: [Piece(" ".join(texts), last=True)],
        lambda parts: tokenizer.encode_batch(parts, threads=1),
        spec,
        tmp_path,
        lambda _: None,
        segment=lambda text: split_sentences(text, "en"),
    )
    with pytest.raises(DataError, match=r"--documents paragraphs.*task\.nsp=false"):
        MaskedLM(tokenizer, TaskConfig(), 32).examples(shards, 1)
    MaskedLM(tokenizer, TaskConfig(nsp=False), 32).examples(shards, 1)


def test_guesses_to_look_at_show_the_hidden_token_and_leave_the_model_as_it_was(
    model: BERT, tokenizer: SentencePieceTokenizer, shards: TokenShards
) -> None:
    task = MaskedLM(tokenizer, TaskConfig(), 32)
    model.train()
    found = task.write(model, task.prompts(shards, 3))
    assert model.training
    model.eval()
    assert len(found) == 3
    for guess in found:
        assert guess["prompt"].count("[MASK]") == 1
        assert set(guess) == {"prompt", "text"}
