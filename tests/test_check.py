"""`data check` finds each thing that it names, where it is, and nothing in data that is sound."""

import json
from pathlib import Path

import pytest

from nlpstack.errors import DataError
from nlpstack.prepare import check_data
from tests.tiny import nlpstack

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small published BERT with a context of 8 tokens, that knows four words."""
    folder = tmp_path_factory.mktemp("published") / "bert"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "abc", "def", "fed", "cab"]
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = transformers.BertConfig(vocab_size=len(pieces), max_position_embeddings=8, **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return folder


def table(folder: Path, **splits: str) -> str:
    """Files of `text<TAB>label`, each given as its rows, "text label" apart by commas."""
    for name, rows in splits.items():
        lines = ["text\tlabel", *(row.strip().replace("=", "\t") for row in rows.split(","))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_sound_data_has_no_problems(tmp_path: Path) -> None:
    found = check_data([table(tmp_path, train="abc=x, def=y, fed=y", test="cab=x")], "classification")
    assert found["problems"] == []
    assert found["splits"]["train"] == {"examples": 3, "labels": {"y": 2, "x": 1}, "doubles": 0}
    assert found["splits"]["test"] == {"examples": 1, "labels": {"x": 1}, "doubles": 0}


def test_doubles_are_counted_inside_and_across_splits(tmp_path: Path) -> None:
    data = table(tmp_path, train="abc=x, def=y, abc=x, fed=y, abc=x", val="def=y, cab=x", test="cab=x, def=y, ab=x")
    assert check_data([data], "classification")["problems"] == [
        "train: 2 of 5 examples stand there once more",
        "val: 1 of 2 examples also stand in train",
        "test: 1 of 3 examples also stand in val",
        "test: 1 of 3 examples also stand in train",
    ]


def test_an_example_with_two_labels_is_named_by_its_lines(tmp_path: Path) -> None:
    data = table(tmp_path, train="abc=x, def=y, abc=y")
    problem = check_data([data], "classification")["problems"][1]
    assert problem == f"train: 2 examples are labelled in more than one way: {data}/train.tsv:2, {data}/train.tsv:4"


def test_labels_that_training_lacks_and_a_single_label(tmp_path: Path) -> None:
    data = table(tmp_path, train="abc=x, def=x", test="cab=z, ab=y, ac=x")
    assert check_data([data], "classification")["problems"] == [
        "train: one label only (x), so there is nothing to learn",
        "test: labels that training lacks: y, z",
    ]


def test_sentences_are_doubles_by_their_words_and_balanced_by_their_entities(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("abc\tB-PER\ndef\tI-PER\n\nfed\tB-LOC\ncab\tB-PER\n\nabc\tO\ndef\tO\n")
    found = check_data([str(tmp_path)], "ner")
    # One file and no split of its own name but train, so all of it is training data.
    assert found["splits"]["train"] == {"examples": 3, "labels": {"PER": 2, "LOC": 1}, "doubles": 1}
    assert found["problems"][0] == "train: 1 of 3 examples stand there once more"
    assert f"{tmp_path}/train.conll:1, {tmp_path}/train.conll:7" in found["problems"][1]


def test_prompts_may_have_several_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "abc", "completion": "def"}, {"prompt": "abc", "completion": "fed"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check_data([str(tmp_path)], "generation")
    assert found["problems"] == []
    assert found["splits"]["train"]["doubles"] == 1


def test_a_model_counts_tokens_over_long_rows_and_unknown_characters(tmp_path: Path, bert: Path) -> None:
    data = table(tmp_path, train="abc=x, def def def def fed fed cab=y, a!?c abc=x")
    found = check_data([data], "classification", model=bert)
    # [CLS] and [SEP] around one word, seven of which one is cut, and four: a, !, ? and c are no words that it knows.
    assert found["splits"]["train"] == {
        **{"examples": 3, "labels": {"x": 2, "y": 1}, "doubles": 0},
        **{"tokens": 3 + 8 + 7, "longest": 8, "mean": 6.0, "unknown": 4},
    }
    assert found["problems"] == [
        "train: 1 texts are longer than 8 tokens and were cut (task.truncate)",
        "train: 4 of 18 tokens are of characters the tokenizer does not know",
    ]


def test_a_split_of_strange_labels_alone_has_no_tokens(tmp_path: Path, bert: Path) -> None:
    found = check_data([table(tmp_path, train="abc=x, def=y", test="cab=z")], "classification", model=bert)
    assert found["splits"]["test"]["tokens"] == 0
    assert found["problems"] == ["test: labels that training lacks: z"]


def test_a_malformed_tag_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("abc\tO\ndef\tQ-PER\n")
    with pytest.raises(DataError, match=r"train\.conll:2"):
        check_data([str(tmp_path)], "ner")


def test_the_command_prints_counts_and_problems(tmp_path: Path) -> None:
    data = table(tmp_path, train="abc=x, def=y, abc=x")
    made = nlpstack("data", "check", data, "--task", "classification")
    assert made.code == 0
    assert made.out.splitlines() == [
        "train: 3 examples; x 2, y 1",
        "problem: train: 1 of 3 examples stand there once more",
    ]
    as_json = nlpstack("data", "check", data, "--task", "classification", "--json").json
    assert as_json == check_data([data], "classification")


def test_the_command_refuses_a_bad_row_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\nabc\n")
    made = nlpstack("data", "check", str(tmp_path), "--task", "classification")
    assert made.code == 2
    assert made.out == ""
    assert made.err.count("\n") == 1
    assert "train.tsv:2" in made.err
