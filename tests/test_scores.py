"""What `nlpstack eval` says beside scores: guesses, examples, slices, gates, a page; and what any system put out."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from nlpstack.recipes import list_recipes
from tests.conftest import ROOT
from tests.tiny import nlpstack, pretrain, write_text
from tests.tiny_labelled import finetune

SCHEMA = Draft202012Validator(json.loads((ROOT / "docs/results.schema.json").read_text()))


@pytest.fixture(scope="module")
def runs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder runs/ with a run of each kind; no test changes it."""
    from tests.tiny_labelled import write_data

    folder = tmp_path_factory.mktemp("work")
    files = write_data(folder)
    for recipe, base in (("classification", "bert"), ("ner", "bert"), ("generation", "gpt")):
        done = finetune(recipe, folder / "runs" / recipe, bases[base], files[recipe])
        assert done.code == 0, done.err
    text = write_text(folder)
    assert nlpstack(*pretrain(text, folder / "runs" / "gpt", "--quiet")).code == 0
    return folder / "runs"


@pytest.fixture
def work(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own to be in, with these runs."""
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FEW = ("--set", "eval.new_tokens=4", "--set", "eval.resamples=20")


def test_one_table_of_all_runs_with_guesses_and_results_that_fit_the_schema(work: Path) -> None:
    for path in Path("runs").glob("*/results.json"):
        SCHEMA.validate(json.loads(path.read_text()))  # as training left it
    done = nlpstack("eval", "--save", "all.json", *FEW)
    assert done.code == 0, done.err
    saved = json.loads(Path("all.json").read_text())
    SCHEMA.validate(saved)
    by_task = {result["task"]: result for result in saved["results"]}
    assert by_task.keys() == {"classification", "ner", "generation", "causal_lm"}
    assert by_task["classification"]["baselines"].keys() == {"majority", "tfidf_logistic"}
    assert by_task["ner"]["baselines"].keys() == {"most_frequent_tag"}
    assert by_task["causal_lm"]["baselines"].keys() == {"unigram", "bigram"}
    assert {"bleu", "chrf", "rougeL", "loss"} <= by_task["generation"]["metrics"].keys()
    assert "|decoding:greedy|new_tokens:4|" in by_task["generation"]["metrics"]["bleu"]["signature"]
    for result in saved["results"]:
        own = json.loads((work / result["model"] / "results.json").read_text())
        SCHEMA.validate(own)
        assert own["results"] == [result]
        assert {"hashes", "versions", "eval", "command"} < result.keys()
        for name in result["metrics"]:
            assert re.search(rf"^{result['model']} +\w+ +{name} ", done.out, re.MULTILINE), name
    assert re.search(r"^  bigram +val +bits_per_byte ", done.out, re.MULTILINE)


def test_without_guesses_and_with_one_metric(work: Path) -> None:
    result = nlpstack("eval", "runs/ner", "--no-baselines", "--metric", "entity_f1", "--json").json["results"][0]
    assert "baselines" not in result
    assert list(result["metrics"]) == ["entity_f1"]
    fault = nlpstack("eval", "runs/ner", "--metric", "entity_f2").fault
    assert "--metric entity_f2: not a metric of the task ner; did you mean 'entity_f1'" in fault


def test_where_the_training_data_is_gone_other_data_is_scored_without_guesses(
    bases: dict[str, Path], data: dict[str, Path], tmp_path: Path
) -> None:
    assert finetune("ner", tmp_path / "run", bases["bert"], data["ner"]).code == 0
    moved = tmp_path / "other.conll"
    (data["ner"] / "test.conll").rename(moved)
    shutil.rmtree(data["ner"])
    done = nlpstack("eval", tmp_path / "run", "--data", moved, "--json")
    assert "baselines" not in done.json["results"][0]
    assert "its training data is not there (" in done.err
    assert "no training part is at hand, so nothing is guessed beside the model" in done.err


@pytest.mark.parametrize("recipe", [recipe.name for recipe in list_recipes("eval")])
def test_recipes_of_evaluation_choose_runs_and_what_is_said(recipe: str, work: Path) -> None:
    results = nlpstack("eval", "--recipe", recipe, "--json", *FEW).json["results"]
    tasks = {result["task"] for result in results}
    assert len(tasks) == 4 if recipe == "all" else len(tasks) == 1
    assert all(("examples" in result) == (recipe in ("classification", "ner", "generation")) for result in results)


def test_the_worst_examples_and_parts_of_the_data(work: Path) -> None:
    result = nlpstack("eval", "runs/classification", "--split", "train", "--examples", 3, "--json").json["results"][0]
    worst = result["examples"]
    assert len(worst) == 3
    assert [one["loss"] for one in worst] == sorted((one["loss"] for one in worst), reverse=True)
    assert set(worst[0]) == {"example", "loss", "input", "predicted", "true"}
    assert worst[0]["true"] in ("good", "bad")
    assert {"label good", "label bad"} < result["slices"].keys()
    parts = [result["slices"][f"label {name}"] for name in ("good", "bad")]
    whole = sum(part["accuracy"] * part["n"] for part in parts) / sum(part["n"] for part in parts)
    assert whole == pytest.approx(result["metrics"]["accuracy"]["value"])
    lengths = [part["n"] for name, part in result["slices"].items() if name.endswith("words")]
    assert sum(lengths) == result["metrics"]["accuracy"]["n"]
    assert "--examples is of labelled data" in nlpstack("eval", "runs/gpt", "--no-baselines", "--examples", 1).err
    told = nlpstack("eval", "runs/ner", "--examples", 1, "--json").json["results"][0]["examples"][0]
    assert told["input"] == "Dan saw Rome"
    assert told["true"] == ["B-PER", "O", "B-LOC"]


def test_gates_fail_a_score_that_is_worse(work: Path) -> None:
    result = nlpstack("eval", "runs/gpt", "--json").json["results"][0]
    loss = result["metrics"]["loss"]["value"]
    assert nlpstack("eval", "runs/gpt", "--fail-under", f"loss={loss + 0.1}").code == 0
    failed = nlpstack("eval", "runs/gpt", "--fail-under", f"loss={loss - 0.1}", "--json")
    assert failed.code == 1
    assert json.loads(failed.out)["results"]
    assert f"--fail-under: runs/gpt: loss {loss:.6g} is above {loss - 0.1}" in failed.err
    assert nlpstack("eval", "runs/ner", "--fail-under", "word_accuracy=0").code == 0
    below = nlpstack("eval", "runs/ner", "--fail-under", "word_accuracy=1.01")
    assert (below.code, "word_accuracy" in below.err) == (1, True)
    for gate, message in (
        ("loss", "--fail-under loss: wanted METRIC=VALUE"),
        ("loss=x", "--fail-under loss=x: wanted METRIC=VALUE"),
        ("los=1", "--fail-under los: no result has this metric; did you mean 'loss'"),
    ):
        assert message in (done := nlpstack("eval", "runs/gpt", "--fail-under", gate)).fault
        assert ("scored in" in done.err) == ("no result" in message)  # what is no gate is told before the work


class Page(HTMLParser):
    """What a page shows and asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.asked: list[str] = []
        self.counts: list[str] = []
        self.text = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.asked += [value for key in ("src", "href") if (value := found.get(key))]
        self.images += [found["alt" if tag == "img" else "aria-label"] or ""] if tag in ("img", "svg") else []
        assert tag != "script"
        self.in_cell = tag == "td" and "background" in (found.get("style") or "")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        self.counts += [data] if self.in_cell else []


def test_the_page_has_tables_and_pictures_and_asks_for_nothing(work: Path) -> None:
    folder = work / "<b>odd & own"
    folder.mkdir()
    (folder / "test.tsv").write_text("text\tlabel\n<script>alert('x')</script> play\tgood\nI hate kings & seas\tbad\n")
    done = nlpstack("eval", "runs/classification", "--data", folder, "--examples", 2, "--report", "page.html")
    assert done.code == 0, done.err
    text = Path("page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.images == ["training and validation loss over steps", "calibration: accuracy by confidence"]
    assert page.counts == ["1", "1"], "the confusion matrix leaves zeros out"
    assert page.asked
    assert all(one.startswith("data:image/png;base64,") for one in page.asked)
    assert "<script>alert('x')</script> play" in page.text  # shown, not run
    assert "<b>odd & own" in page.text
    assert "balanced_accuracy" in page.text
    for word in ("url(", "http:", "https:", "@import"):
        assert word not in text
    assert nlpstack("eval", "--report", "all.html", *FEW).code == 0


def test_a_page_that_cannot_be_made_is_refused_before_the_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--report runs: is a folder" in (done := nlpstack("eval", "runs/gpt", "--report", "runs")).fault
    assert "scored" not in done.err
    monkeypatch.setattr("nlpstack.report.find_spec", lambda name: None)
    fault = nlpstack("eval", "runs/gpt", "--report", "page.html").fault
    assert "--report: needs matplotlib and jinja2; pip install 'nlpstack[report]'" in fault


def test_similarity_of_pairs_needs_no_training(bases: dict[str, Path], data: dict[str, Path], tmp_path: Path) -> None:
    for name, base in bases.items():
        done = nlpstack("eval", base, "--task", "similarity", "--data", data["pair"], "--save", tmp_path / "pairs.json")
        saved = json.loads((tmp_path / "pairs.json").read_text("utf-8"))
        SCHEMA.validate(saved)
        (result,) = saved["results"]
        assert f"mean_cosine: {result['details']['mean_cosine']:.4f}\n" in done.out
        assert "baselines" not in result
        assert result["metrics"].keys() == {"pearson", "spearman"}, name
        assert result["details"].keys() == {"mean_cosine", "mean_cosine_zscored"}
        assert abs(result["details"]["mean_cosine_zscored"]) < abs(result["details"]["mean_cosine"])
    words = ("--task", "similarity", "--data", data["pair"], "--examples", 2)
    told = nlpstack("eval", bases["bert"], *words, "--json").json["results"][0]["examples"]
    assert [set(one) for one in told] == [{"example", "rank_gap", "input", "predicted", "true"}] * 2
    assert 1 >= told[0]["rank_gap"] >= told[1]["rank_gap"] >= 0
    assert told[0]["input"].startswith("a king | a ")
    fault = nlpstack("eval", bases["bert"], "--task", "similarity", "--data", data["classification"]).fault
    assert "train.tsv:2: similarity needs 'text_a', 'text_b' and 'score', a number" in fault


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["runs/ner", "--task", "classification"],
            "--task classification: does not fit runs/ner; it can be scored for ner",
        ),
        (
            ["runs/gpt", "--task", "ner"],
            "--task ner: does not fit runs/gpt; it can be scored for causal_lm, similarity",
        ),
        (["runs/ner", "--split", "val", "--data", "gone.conll"], "gone.conll"),
        (["--recipe", "nothing"], "no eval recipe is called 'nothing'"),
        (
            ["runs/ner", "--predictions", "x"],
            "--predictions, --references and --task go together: --references is missing",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(words: list[str], message: str, work: Path) -> None:
    assert message in nlpstack("eval", *words).fault


# -- what any system put out ----------------------------------------------------------------------------------------


def scored(task: str, predictions: Path, references: Path, *words: object) -> dict[str, float]:
    given = ("--predictions", predictions, "--references", references, "--task", task)
    (result,) = nlpstack("eval", *given, "--json", *words).json["results"]
    SCHEMA.validate({"results": [result]})
    return {name: score["value"] for name, score in result["metrics"].items()}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_files_of_texts_labels_numbers_and_tags(tmp_path: Path) -> None:
    texts = write(tmp_path / "out.txt", "the cat sat on the mat", "")
    gold = write(
        tmp_path / "gold.jsonl", {"references": ["the cat sat on the mat", "a cat"]}, {"references": ["a dog"]}
    )
    found = scored("generation", texts, gold)
    assert found["exact_match"] == 0.5
    assert found["rougeL"] == 50
    plain = write(tmp_path / "gold.txt", "the cat sat on the mat", "a dog")
    assert scored("generation", texts, plain)["bleu"] == found["bleu"]
    one = write(tmp_path / "labels.jsonl", {"label": "yes", "probabilities": {}}, {"label": "no"}, {"label": "no"})
    two = write(tmp_path / "labels.tsv", "text\tlabel", "a\tyes", "b\tyes", "c\tno")
    assert scored("classification", one, two)["accuracy"] == pytest.approx(2 / 3)
    many = write(tmp_path / "many.jsonl", {"label": ["a", "b"]}, {"label": []})
    assert scored("classification", many, many)["f1_micro"] == 1
    numbers, others = write(tmp_path / "n.txt", "1.0", "2.5", "3.5"), write(tmp_path / "m.txt", "1.5", "2.0", "4.0")
    assert scored("classification", numbers, others)["spearman"] == pytest.approx(1)
    tags = write(tmp_path / "out.conll", "Ann\tB-PER", "left\tO", "", "Rome\tI-LOC")
    true = write(tmp_path / "gold.conll", "Ann\tB-PER", "left\tO", "", "Rome\tB-LOC")
    found = scored("ner", tags, true)
    assert (found["entity_f1"], found["entity_f1_strict"]) == (1.0, pytest.approx(2 / 3))


def test_published_scores_from_the_command_line(shared_data: Path) -> None:
    folder = shared_data / "wnut17"
    systems = [line.split("\t") for line in (folder / "outputs" / "scores.tsv").read_text().splitlines()[1:]]
    name, published, _ = systems[0]
    found = scored("ner", folder / "outputs" / name, folder / "test.conll", "--set", "eval.resamples=0")
    assert f"{100 * found['entity_f1']:.2f}" == published
    outputs, gold = shared_data / "e2e" / "outputs" / "test.tgen.txt", shared_data / "e2e" / "test.jsonl"
    assert f"{scored('generation', outputs, gold, '--lowercase', '--set', 'eval.resamples=0')['bleu']:.2f}" == "65.93"


@pytest.mark.parametrize(
    ("task", "one", "two", "message"),
    [
        ("generation", "a\nb\n", "a\n", "one.txt: 2 predictions for the 1 references of "),
        ("generation", "a\n", " \n", "two.txt:1: the reference is empty; there is nothing to compare with"),
        ("generation", "", "", "two.txt: is empty; give references to score against"),
        (
            "classification",
            "a\n\n",
            "a\nb\n",
            "one.txt:2: 'label' must be a class name, a number or a list of class names, found ''",
        ),
        ("classification", "a\n", "1.5\n", "labels of different kinds"),
        ("ner", "Ann\tB-PER\n", "Ann\tQ-PER\n", "sentence 1: unknown tag 'Q-PER'"),
        ("ner", "Ann\tB-PER\nleft\tO\n", "Ann\tB-PER\n", "sentence 1 has 2 tags for 1 words"),
        ("similarity", "a\n", "a\n", "--task similarity: files are scored for one of classification, ner, generation"),
    ],
)
def test_files_that_do_not_go_together_are_one_line(
    task: str, one: str, two: str, message: str, tmp_path: Path
) -> None:
    paths = tmp_path / "one.txt", tmp_path / "two.txt"
    for path, content in zip(paths, (one, two), strict=True):
        path.write_text(content)
    assert message in nlpstack("eval", "--predictions", paths[0], "--references", paths[1], "--task", task).fault


def test_what_recipes_and_set_ask_counts_for_files_too(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("The cat sat here\nA dog ran\n")
    other.write_text("the cat sat here\na dog ran off\n")
    words = ("eval", "--predictions", one, "--references", other, "--task", "generation")
    result = nlpstack(*words, "--recipe", "generation", "--set", "eval.resamples=7", "--json").json["results"][0]
    assert "|resamples:7|" in result["metrics"]["bleu"]["signature"]
    assert len(result["examples"]) == 2  # as the recipe asks
    for more, message in (
        (["--set", "task.threshold=0.3"], "--set task.threshold: says how a model is read, and there is none"),
        (["--recipe", "ner"], "--recipe ner: is of ner, and --task generation is asked for"),
    ):
        assert message in nlpstack(*words, *more).fault
