"""`info` and `doctor`: what they say against what is built, and what they refuse."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
import transformers

from nlpstack import inspection
from nlpstack.errors import ConfigError
from nlpstack.hub import load_model, save_model
from nlpstack.inspection import EXTRAS, doctor, info
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.model.heads import Labels
from nlpstack.model.transformer import on_meta
from nlpstack.recipes import find_recipe, list_recipes
from nlpstack.samples import sample
from nlpstack.train.run import load_run
from tests.tiny import nlpstack, pretrain, settings, write_text

RECIPES = [recipe.name for recipe in list_recipes("pretrain")]
SMALL = {"gpt", "llama-mini", "shakespeare-char", "shakespeare-char-cpu", "bert"}
BYTES = {
    *("weights", "gradients", "optimizer", "activations", "workspace"),
    *("validation", "process", "allocator", "peak"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; no test changes it."""
    folder = tmp_path_factory.mktemp("runs")
    assert nlpstack(*pretrain(write_text(folder), folder / "tiny", "--quiet")).code == 0
    return folder / "tiny"


# -- info ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_those_of_the_model_a_recipe_makes(name: str) -> None:
    found = info(name)
    recipe = load_run(name, "pretrain", {}, [f"model.vocab_size={found['shape']['vocab_size']}"]).config
    config, made = recipe.model, GPT if recipe.model.causal else BERT
    heads = {} if config.causal else {"heads": ("mlm", "pooler", "nsp") if recipe.task.nsp else ("mlm",)}
    with on_meta():
        model = made(config, **heads)
    count = found["parameters"]
    assert count["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert count["blocks"] == sum(parameter.numel() for parameter in model.transformer.blocks.parameters())
    assert count["embedding"] + count["other"] + count["heads"] == count["total"]
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert count["heads"] == sum(size for n, size in sizes.items() if n.startswith(("mlm_head", "pooler", "nsp_head")))
    assert count["embedding"] == sum(
        p.numel()
        for n, p in model.named_parameters()
        if p.dim() > 1 and "blocks" not in n and "head" not in n and "pooler" not in n
    ) + (0 if config.tied else config.vocab_size * config.dim)
    if name in SMALL:
        real = made.create(config, seed=0, **heads)
        assert count["total"] == sum(parameter.numel() for parameter in real.parameters())
        assert found["bytes"]["weights"] == sum(parameter.nbytes for parameter in real.parameters())


def test_gpt2s_parameters_are_those_published() -> None:
    count = info("gpt2-124m")["parameters"]
    assert (count["total"], count["rule_12_l_d2"]) == (124_439_808, 12 * 12 * 768**2)


RECIPE = """
[data]
paths = ["sample:abstracts"]
[tokenizer]
kind = "unigram"
vocab_size = 600
[model]
causal = false
pre_norm = false
n_segments = 2
max_seq_len = 64
dim = 32
n_layers = 2
n_heads = 2
[task]
mask_share = 0.2
[train]
steps = 3
batch_size = 4
"""


def test_info_knows_berts(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RECIPE)
    found = info(tmp_path / "small.toml")
    assert found["kv_cache_bytes_per_token"] is None
    assert found["bytes"].keys() == BYTES
    matrices = 2 * 12 * 32**2  # of the blocks
    scored = 0.2 * (600 * 32 + 32**2)  # the unembedding and the head's layer, at the hidden tokens
    assert found["flops_per_token"]["forward"] == round(2 * (matrices + scored)) + 4 * 2 * 32 * 64
    one_text = info(tmp_path / "small.toml", ["task.nsp=false"])
    assert found["parameters"]["heads"] - one_text["parameters"]["heads"] == 32 * 32 + 32 + 2 * 32 + 2
    assert one_text["bytes"]["activations"] < found["bytes"]["activations"]  # no mask, no segments
    done = nlpstack("info", tmp_path / "small.toml")
    assert f"{found['parameters']['heads']:,}  masked tokens, next sentence" in done.out
    assert "cache a token" not in done.out


@pytest.mark.parametrize("heads", [("mlm", "pooler", "nsp"), ("mlm",), ("pooler",)], ids=" ".join)
def test_info_counts_the_heads_that_the_folder_of_a_bert_has(heads: tuple[str, ...], tmp_path: Path) -> None:
    shape = TransformerConfig(
        vocab_size=50, max_seq_len=16, dim=32, n_layers=1, n_heads=2, causal=False, pre_norm=False, n_segments=2
    )
    model = BERT.create(shape, seed=0, heads=heads)
    save_model(model, tmp_path / "model")
    found = info(tmp_path / "model")
    assert found["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    scored = 0.15 * (50 * 32 + 32**2) if "mlm" in heads else 0
    assert found["flops_per_token"]["forward"] == round(2 * (12 * 32**2 + scored)) + 4 * 32 * 16


@pytest.mark.parametrize("head", ["sequence", "tokens"])
def test_info_counts_a_classifier_as_a_head(head: str, tmp_path: Path) -> None:
    shape = TransformerConfig(
        vocab_size=50, max_seq_len=16, dim=32, n_layers=1, n_heads=2, causal=False, pre_norm=False, n_segments=2
    )
    heads = ("pooler", "sequence") if head == "sequence" else ("tokens",)
    save_model(BERT.create(shape, seed=0, heads=heads, labels=Labels(("good", "bad", "ugly"))), tmp_path / "model")
    count = info(tmp_path / "model")["parameters"]
    assert count["embedding"] == (50 + 16 + 2) * 32
    assert count["heads"] == 3 * 32 + 3 + (32 * 32 + 32 if head == "sequence" else 0)


def test_a_vocabulary_of_characters_is_counted_in_the_sample_or_said_to_be_assumed(tmp_path: Path) -> None:
    text = sample("shakespeare").read_text(encoding="utf-8")
    found = info("shakespeare-char")
    learned = set(text[: len(text) * 9 // 10]) | {" "}
    assert found["shape"]["vocab_size"] == 263 + len(learned)  # and what is fixed; the newline is of that
    (note, *_) = found["notes"]
    assert "every character of sample:shakespeare" in note

    found = info("shakespeare-char", flags={"data.paths": [str(tmp_path)]})
    assert "assumed" in found["notes"][0]
    found = info("shakespeare-char", ["tokenizer.vocab_size=300"])
    assert found["shape"]["vocab_size"] == 300
    assert not any("vocabulary" in note for note in found["notes"])


def test_info_of_a_run_is_what_it_was_and_of_its_model_what_is_known(run: Path) -> None:
    found = info(run)
    results, choices = json.loads((run / "results.json").read_text()), tomllib.loads((run / "config.toml").read_text())
    assert found["kind"] == "run"
    assert found["parameters"]["total"] == results["run"]["parameters"]
    assert found["bytes"].keys() == BYTES
    made = choices["choices"]
    assert all(found["training"][name] == made[name] for name in ("device", "dtype", "attention", "micro_batch"))

    model = info(run / "model")
    assert model["kind"] == "model"
    assert model["parameters"] == found["parameters"]
    assert model["training"] is None
    assert model["bytes"] == {**dict.fromkeys(BYTES), "weights": 4 * found["parameters"]["total"]}
    assert info(find_recipe("gpt"), ["model.n_layers=2"])["shape"]["n_layers"] == 2


def test_info_of_a_published_folder_counts_what_transformers_counts(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    theirs = transformers.LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path)
    found = info(tmp_path)
    assert found["parameters"]["total"] == theirs.num_parameters()
    assert found["kv_cache_bytes_per_token"] == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, fp32


def test_values_that_change_the_run_change_the_bytes() -> None:
    before, after = info("gpt"), info("gpt", ["train.micro_batch=4", "optim.lr=0.1"], flags={"train.dtype": "fp32"})
    assert after["training"]["dtype"] == "fp32"
    assert after["bytes"]["activations"] < before["bytes"]["activations"]
    assert after["bytes"]["weights"] == before["bytes"]["weights"]
    assert "train.epochs" in info("gpt", ["train.epochs=2"])["notes"][0]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["gtp"], "'gtp' is neither a recipe nor a folder; did you mean 'gpt'?"),
        (["pretrain/gpt2-124"], "did you mean 'pretrain/gpt2-124m'?"),
        (["none.toml"], "there is no file 'none.toml'"),
        (["{run}x"], "did you mean '{run}'?"),
        (["{run}", "--set", "model.dim=64"], "is a model, which has no values to set; give a recipe"),
        (["{run}/results.json"], "a file; give the folder that holds it"),
        (["gpt", "--set", "model.dmi=64"], "did you mean 'model.dim'?"),
        (["gpt", "--set", "model.vocab_size=77"], "a run takes its tokenizer's, 4096; set tokenizer.vocab_size"),
        (["gpt", "--set", "train.batch_size=2", "--set", "train.micro_batch=3"], "more than the 2 sequences"),
    ],
)
def test_info_refuses_in_one_line(words: list[str], hint: str, run: Path) -> None:
    done = nlpstack("info", *(word.format(run=run) for word in words))
    assert hint.format(run=run) in done.fault
    assert done.err.count("\n") == 1


def test_info_prints_the_figures_it_gives_as_json(run: Path) -> None:
    found = nlpstack("info", run, "--json").json
    assert found.keys() == {
        *("name", "kind", "shape", "parameters", "flops_per_token", "kv_cache_bytes_per_token"),
        *("training", "bytes", "notes"),
    }
    done = nlpstack("info", run)
    lines = {line.split("  ")[0].strip() or line.split()[0]: line for line in done.out.splitlines()}
    assert f"{found['parameters']['total']:,}" in lines["parameters"]
    assert "12·L·d² gives 12,288" in done.out
    assert "peak" in done.out
    done = nlpstack("info", run / "model")
    assert "only the weights are counted" in done.err
    assert nlpstack("info", run / "model", "--quiet").err == ""


def test_a_dry_run_says_the_same_memory_but_for_its_process(tmp_path: Path) -> None:
    done = nlpstack(*pretrain(write_text(tmp_path), tmp_path / "out", "--dry-run"))
    (line,) = [line for line in done.err.splitlines() if line.startswith("memory: ")]
    said = info("gpt", [word for word in settings() if word != "--set"], flags={"train.threads": 1})["bytes"]
    for name in ("weights", "activations", "optimizer"):
        assert f"{name} {said[name] / 2**20:,.1f}" in line


# -- doctor --------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Measurements that take no time: seconds by what is measured, one second where nothing is given."""
    seconds: dict[str, float] = {}
    monkeypatch.setattr(inspection, "_product_seconds", lambda n, dtype, device: seconds.get(dtype, 1.0))
    monkeypatch.setattr(inspection, "_attention_seconds", lambda product, dtype, device: seconds.get(product, 1.0))
    return seconds


def test_doctor_measures_each_choice(tmp_path: Path) -> None:
    done = nlpstack("doctor", "--out", tmp_path / "runs" / "new", "--json")
    found = done.json
    assert found["disk"]["path"] == str(tmp_path)
    assert found["disk"]["free_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert list(tmp_path.iterdir()) == []
    assert found["dtype"]["fp32_gflops"] > 0 < found["dtype"]["bf16_gflops"]
    assert found["attention"]["plain_ms"] > 0 < found["attention"]["fused_ms"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["compiler"]["compile_seconds"] is None  # with --full alone


def test_doctor_says_where_a_measurement_contradicts_a_rule(at_once: dict[str, float], tmp_path: Path) -> None:
    assert doctor(tmp_path, device="cpu", threads=1)["problems"] == []
    chosen = doctor(tmp_path, device="cpu", threads=1)["dtype"]["choice"]
    other = {"bf16": "fp32", "fp32": "bf16"}[chosen]
    rule, faster = {"bf16": ("plain", "fused"), "fp32": ("fused", "plain")}[chosen]
    at_once.update({other: 0.5, faster: 0.4})
    dtype, attention = doctor(tmp_path, device="cpu", threads=1)["problems"]
    assert dtype.startswith(f"dtype: the rule takes {chosen}, but {other} multiplies 2.0 times as fast")
    said = f"attention: the rule takes the {rule} product, but the {faster} one is 2.5 times as fast"
    assert attention.startswith(said)
    done = nlpstack("doctor", "--out", tmp_path, "--device", "cpu", "--threads", 1, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert all(line.startswith("problem: ") for line in done.out.splitlines())


def test_doctor_finds_a_full_or_forbidden_disk_too_many_threads_and_no_compiler(
    at_once: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inspection.tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr(inspection.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1 << 20))
    monkeypatch.setattr(inspection.os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(inspection.runtime, "can_compile", lambda _: False)
    found = doctor(tmp_path, device="cpu", threads=2)
    assert [problem.partition(":")[0] for problem in found["problems"]] == ["threads", "compiler", "disk", "disk"]
    assert found["disk"]["write_mb_per_second"] is None
    out = nlpstack("doctor", "--out", tmp_path, "--device", "cpu").out
    assert "cannot be written (Permission denied)" in out
    assert "1 MiB free" in out


def test_doctor_reports_a_compiler_that_fails(
    at_once: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(function: object) -> None:
        raise RuntimeError("no such\nlibrary")

    monkeypatch.setattr(inspection.torch, "compile", fail)
    monkeypatch.setattr(inspection.runtime, "can_compile", lambda _: True)
    assert doctor(tmp_path, device="cpu", threads=1)["problems"] == []
    (problem,) = doctor(tmp_path, device="cpu", threads=1, full=True)["problems"]
    assert problem == "compiler: found, but compiling fails (no such library); give --set train.compile=false"


@pytest.mark.slow
def test_a_small_function_is_compiled_with_full(tmp_path: Path) -> None:
    found = doctor(tmp_path, device="cpu", full=True)["compiler"]
    if not found["found"]:
        pytest.skip("no compiler here")
    assert found["compile_seconds"] > 0


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    declared = {
        extra: {wanted.partition(">")[0] for wanted in packages}
        for extra, packages in project["optional-dependencies"].items()
        if extra not in ("dev", "docs")
    }
    assert {extra: set(packages) for extra, (packages, _) in EXTRAS.items()} == declared


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(ConfigError, match="finds no Apple GPU here"):
        doctor(device="mps")


def test_a_model_that_was_altered_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run / "model", tmp_path / "model"))
    assert load_model(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "n_layer": 2}))
    assert str(copy) in nlpstack("info", copy).fault
