"""Words own labels: pieces and windows, decoding, and scores on words."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.data.labelled import TaggedExample
from nlpstack.errors import DataError
from nlpstack.model import BERT, TransformerConfig
from nlpstack.model.heads import Labels
from nlpstack.tasks import NER, TaskConfig
from nlpstack.tasks.ner import Sentences, best_tags, may_follow, tags_of, windows_of
from tests.tasks.conftest import KINDS

QUICK = settings(max_examples=60, deadline=None)
NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def shape(vocab_size: int, length: int = 64) -> TransformerConfig:
    return TransformerConfig(
        **{"vocab_size": vocab_size, "max_seq_len": length, "dim": 16, "n_layers": 1, "n_heads": 2},
        **{"causal": False, "pre_norm": False, "n_segments": 2},
    )


def task_of(tokenizer, length: int = 64, **config) -> NER:
    return NER(tokenizer, shape(tokenizer.vocab_size, length), Labels(NAMES), TaskConfig(name="ner", **config))


def model_of(task: NER, length: int = 64) -> BERT:
    config = shape(task.tokenizer.vocab_size, length)
    return BERT.create(config, seed=0, heads=("tokens",), labels=task.labels).eval()


def tagged(words: list[str]) -> TaggedExample:
    return TaggedExample("here:1", tuple(words), tuple(NAMES[len(word) % 5] for word in words))


WORDS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Zs", "Zl", "Zp", "Cc")), min_size=1, max_size=12).filter(
        lambda word: bool(word.strip()) and word.split() == [word]
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(words=WORDS)
def test_each_word_has_pieces_and_each_label_stands_at_its_first(tokenizers, kind: str, words: list[str]) -> None:
    tokenizer = tokenizers[kind]
    task = task_of(tokenizer, 512)
    (pieces,) = task.pieces([words])
    assert all(pieces)
    if kind != "wordpiece":  # what the words' pieces spell, one behind the other, is the sentence
        joined = b"".join(tokenizer.token_bytes(token) for ids in pieces for token in ids)
        assert joined.decode("utf-8") == " ".join(words)
    row = task.encode([tagged(words)], "train", lambda line: None).rows[0]
    places, labels = row.labels
    tags = labels[places]
    starts = np.cumsum([1, *map(len, pieces)])
    for word, place, tag, start, stop in zip(words, places, tags, starts[:-1], starts[1:], strict=True):
        assert start <= place < stop
        assert NAMES[tag] == NAMES[len(word) % 5]
        before = b"".join(tokenizer.token_bytes(int(token)) for token in row.tokens[start:place])
        assert not before.strip(), "only white space stands before the piece that carries the label"
    assert row.tokens.tolist() == [tokenizer.cls_id, *(token for ids in pieces for token in ids), tokenizer.sep_id]


@QUICK
@given(st.lists(st.integers(1, 6), min_size=1, max_size=80), st.integers(6, 30))
def test_windows_hold_what_fits_and_own_each_word_once(lengths: list[int], room: int) -> None:
    windows = windows_of(lengths, room)
    owned = [word for _, _, own, stop in windows for word in range(own, stop)]
    assert owned == list(range(len(lengths)))
    for first, stop, own, own_stop in windows:
        assert first <= own <= own_stop <= stop
        assert sum(lengths[first:stop]) <= room
    if len(windows) > 1 and max(lengths) <= room // 8:  # an owned word has neighbours on both sides, but at the ends
        for (first, stop, own, own_stop), number in zip(windows, range(len(windows)), strict=True):
            assert number == 0 or own > first
            assert number == len(windows) - 1 or own_stop < stop


@QUICK
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_decoding_finds_the_best_of_all_sequences_that_are_allowed(n_words: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(n_words, len(NAMES)))
    allowed = may_follow(NAMES)

    def legal(tags: tuple[int, ...]) -> bool:
        return all(allowed[before, tag] for before, tag in zip((-1, *tags), tags, strict=False))

    best = max(filter(legal, product(range(len(NAMES)), repeat=n_words)), key=lambda t: scores[range(n_words), t].sum())
    assert best_tags(scores, allowed) == list(best)
    assert best_tags(scores, None) == scores.argmax(axis=1).tolist()


def test_a_tag_inside_follows_only_its_own_type() -> None:
    allowed = may_follow(NAMES)
    for j, tag in enumerate(NAMES):
        if tag.startswith("I-"):
            assert [NAMES[i] for i in np.flatnonzero(allowed[:-1, j])] == [f"B-{tag[2:]}", tag]
            assert not allowed[-1, j]
        else:
            assert allowed[:, j].all()


def test_padded_rows_score_as_they_do_alone_and_windows_as_one(tokenizers) -> None:
    task = task_of(tokenizers["unigram"])
    model = model_of(task)
    sentences = [
        tagged(["To", "be", "or", "not"]),
        tagged(["Speak"]),
        tagged(["O", "brave", "new", "world", "that", "has"]),
    ]
    together = decoded(task, model, sentences)
    for sentence, (values, tags) in zip(sentences, together, strict=True):
        alone_values, alone_tags = decoded(task, model, [sentence])[0]
        assert tags == alone_tags
        np.testing.assert_allclose(values, alone_values, atol=1e-5)


def decoded(task: NER, model: BERT, sentences: list[TaggedExample]) -> list[tuple[np.ndarray, list[int]]]:
    rows = task.encode(sentences, "val", lambda line: None)
    pending, found = Sentences(), {}
    with torch.inference_mode():
        for batch in rows.batches(10_000):
            for number, example, owned, part in task.read(model, batch):
                if (values := pending.joined(number, len(example.words), owned, part)) is not None:
                    found[number] = values, best_tags(values, task.allowed)
    return [found[number] for number in range(len(sentences))]


def test_a_long_sentence_is_read_in_windows_and_every_word_is_scored(tokenizers) -> None:
    task = task_of(tokenizers["char"], 32)
    notes: list[str] = []
    long = tagged([f"word{number}" for number in range(40)] + ["x" * 90])
    rows = task.encode([long, tagged(["short"])], "test", notes.append)
    assert len(rows.rows) > 5
    assert all(len(row.tokens) <= 32 for row in rows.rows)
    assert notes == [
        "test: 1 sentences are longer than the context and read in overlapping windows",
        "test: 1 words are read by their first 15 pieces",
    ]
    values, tags = decoded(task, model_of(task, 32), [long])[0]
    assert values.shape == (41, 5)
    assert len(tags) == 41
    assert rows.batch([(0, index) for index in range(len(rows.rows))]).n_targets == {"tag": 42}


def test_the_loss_is_that_of_first_pieces(tokenizers) -> None:
    task = task_of(tokenizers["bpe"])
    model = model_of(task)
    sentences = [tagged(["What", "news", "on", "the", "Rialto"]), tagged(["None"])]
    rows = task.encode(sentences, "train", lambda line: None)
    batch = rows.batch([(0, 0), (0, 1)])
    with torch.no_grad():
        loss = task.loss(model, batch)["tag"].item()
    values = decoded(task, model, sentences)
    wanted = -sum(
        v[i, NAMES.index(tag)] for s, (v, _) in zip(sentences, values, strict=True) for i, tag in enumerate(s.tags)
    )
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert batch.n_targets == {"tag": 6}


def test_tags_come_from_training_and_strange_ones_are_named(tokenizers) -> None:
    notes: list[str] = []
    labels = tags_of(
        [TaggedExample("a:1", ("x", "y"), ("B-PER", "O")), TaggedExample("a:3", ("z",), ("B-LOC",))], notes.append
    )
    assert labels.names == NAMES
    assert notes == ["entities of the training data: PER 1, LOC 1; tags in IOB2"]
    with pytest.raises(DataError, match=r"a:1: the training data has no entity"):
        tags_of([TaggedExample("a:1", ("x",), ("O",))], notes.append)
    strange = TaggedExample("b:7", ("x",), ("B-ORG",))
    with pytest.raises(
        DataError, match=r"^b:7: tag 'B-ORG' is none that training saw \(O, B-LOC, .*--unknown-labels ignore$"
    ):
        task_of(tokenizers["bpe"]).encode([strange], "val", notes.append)
    rows = task_of(tokenizers["bpe"], ignore_unknown=True).encode([strange, tagged(["x"])], "val", notes.append)
    assert len(rows.rows) == 1
    assert notes[-1] == "val: 1 sentences with types that training never saw are left out"


def test_entities_carry_the_places_of_their_characters(tokenizers) -> None:
    task = task_of(tokenizers["bpe"])
    values = np.log(np.full((4, 5), 0.2))
    words = ["New", "York", "is", "Ann"]
    joined = task.entities(words, [1, 2, 0, 3], values, ("New York is Ann", (0, 4, 9, 12)))
    assert joined["tags"] == ["B-LOC", "I-LOC", "O", "B-PER"]
    assert joined["entities"] == [
        {"start": 0, "end": 8, "label": "LOC", "text": "New York", "score": pytest.approx(0.2)},
        {"start": 12, "end": 15, "label": "PER", "text": "Ann", "score": pytest.approx(0.2)},
    ]
    placed = task.entities(words, [1, 2, 0, 3], values, ("New  York is, Ann", (0, 5, 10, 14)))["entities"]
    assert [(one["start"], one["end"], one["text"]) for one in placed] == [(0, 9, "New  York"), (14, 17, "Ann")]


def test_words_without_a_text_are_joined_by_one_space(tokenizers) -> None:
    task = task_of(tokenizers["bpe"], constrained=False)
    sentence = tagged(["Ann", "saw", "New", "York"])
    model = model_of(task)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, 9.0, 0, 0, 0]))  # all is B-LOC
    rows = task.encode([sentence], "test", lambda line: None)
    with torch.inference_mode():
        ((number, found),) = task.results(model, rows, 100)
    assert (number, found["tags"]) == (0, ["B-LOC"] * 4)
    assert [(e["start"], e["end"], e["text"]) for e in found["entities"]] == [
        (0, 3, "Ann"),
        (4, 7, "saw"),
        (8, 11, "New"),
        (12, 16, "York"),
    ]
