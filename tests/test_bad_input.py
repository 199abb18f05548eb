"""Bad input ends in one line that names value, origin and cure, with exit code 2 and nothing half-written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlpstack.errors import some
from nlpstack.hub import weights_hash
from tests.tiny import nlpstack, pretrain, tree, write_text

# Holds a file's lock until its standard input is closed.
HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_SH)  # only a lock that excludes all others is refused
    print("held", flush=True)
    sys.stdin.read()
"""
# Every file of a model folder that is checked; README.md is free text.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A finished run; no test changes it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert nlpstack(*pretrain(text, out, "--quiet", train__checkpoint_every=2)).code == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's model folder alone."""
    return Path(shutil.copytree(finished / "model", tmp_path / "model"))


def complain(*words: object, stdin: bytes = b"") -> str:
    """The one line of a command that is refused; with --quiet it is all of stderr."""
    done = nlpstack(*words, stdin=stdin)
    assert done.err.count("\n") == 1 or "--quiet" not in words
    return done.fault.removeprefix("nlpstack: ")


# -- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("missing.txt", None, "no such file or folder"),
        ("empty.txt", b"", "holds no text, at most white space; give files with text in them"),
        ("blank.txt", b" \n\t\r\n\n" * 9999, "holds no text, at most white space"),
        ("empty.jsonl", b'{"text": ""}\n', "holds no text"),
        ("latin.txt", b"caf\xe9 au lait " * 999, "not UTF-8 at byte 3 (0xe9); convert the file to UTF-8"),
        ("late.txt", b"a b\n" * 600_000 + b"\xff", "not UTF-8 at byte 2400000 (0xff)"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ":2: not JSON"),
        ("rows.jsonl", b'{"txet": "a"}\n', ":1: expected an object with a string 'text'"),
        ("text.pdf", b"a", "not a kind of corpus file nlpstack reads; accepted: .txt, .jsonl"),
        ("damaged.txt.gz", b"\x1f\x8b\x08\x00 no", "cannot be read"),
        ("a.txt", b"a", "too short to cut a validation part from"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_named(name: str, content: bytes | None, fault: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    before = tree(tmp_path)
    message = complain(*pretrain(path, tmp_path / "out", "--quiet"))
    assert str(path) in message
    assert fault in message
    assert {entry for entry in tree(tmp_path) if not entry.startswith(".cache")} == before.keys()


def test_a_folder_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert f"{tmp_path / 'data'}: no corpus files" in complain(*pretrain(tmp_path / "data", tmp_path / "out"))


def test_a_sample_that_does_not_exist_has_a_nearest(tmp_path: Path) -> None:
    assert "did you mean 'shakespeare'?" in complain(*pretrain("sample:shakespere", tmp_path / "out"))


# -- recipes, flags and values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "faults"),
    [
        (["--set", "model.dmi=3"], ["--set", "'model.dmi'", "did you mean 'model.dim'?"]),
        (["--set", "modle.dim=3"], ["--set", "'modle'", "did you mean 'model'?"]),
        (["--set", "train.steps=abc"], ["--set", "train.steps='abc'", "integer"]),
        (["--set", "train.steps=true"], ["--set", "train.steps=True", "integer"]),
        (["--set", "train.steps=2.5"], ["--set", "train.steps=2.5", "integer"]),
        (["--set", 'optim.lr="1"'], ["--set", "optim.lr='1'", "number"]),
        (["--set", "optim.lr=inf"], ["--set", "optim.lr=inf", "must be finite"]),
        (["--set", "optim.name=adamm"], ["--set", "optim.name='adamm'", "did you mean 'adam'?"]),
        (["--set", "optim.schedule=cosin"], ["--set", "optim.schedule='cosin'", "did you mean 'cosine'?"]),
        (["--set", "train.dtype=fp8"], ["--set", "train.dtype='fp8'", "'bf16'"]),
        (["--set", "model.dim=33"], ["--set", "dim=33", "multiple of n_heads=2"]),
        (["--set", "train.steps=0"], ["--set", "train.steps=0: input should be greater than 0"]),
        (["--set", "train.steps"], ["--set train.steps", "expected section.key=value"]),
        (["--set", "train.batch_tokens=64"], ["train.batch_size and train.batch_tokens exclude each other"]),
        (["--set", "train.micro_batch=9"], ["train.micro_batch=9", "4 sequences of a step"]),
        (
            ["--set", "train.seed=9223372036854775808"],
            ["--set", "train.seed=9223372036854775808: input should be less than"],
        ),
        (["--set", "data.val_share=1.5"], ["val_share=1.5", "below 1"]),
        (["--set", "model.causal=false"], ["model.n_segments=0", "pairs of texts need 2, or task.nsp=false"]),
        (["--set", "model.max_seq_len=99999"], ["model.max_seq_len=99999", "longer than the data", "at most"]),
        (["--set", "tokenizer.vocab_size=99999"], ["tokenizer.vocab_size=99999", "at most", "more text"]),
        (["--set", "tokenizer.vocab_size=9"], ["tokenizer.vocab_size=9", "at least"]),
        (["--device", "cuda"], ["device=cuda", "use --device cpu or auto"]),
        (["--device", "tpu"], ["--device", "'tpu'", "'cuda'"]),
        (["--dtype", "fp16"], ["dtype=fp16", "use bf16 or fp32"]),
        (["--threads", "0"], ["--threads", "0 is not in the range"]),
        (["--seed", "-1"], ["--seed", "-1 is not in the range"]),
        (["--resume", "--overwrite"], ["--resume and --overwrite exclude each other"]),
        (["--tokenizer", "/no/tok"], ["/no/tok"]),
        (["--model", "/no/model"], ["/no/model", "no such file or folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and value[0].startswith("--") else "",
)
def test_a_value_that_cannot_be_meant_is_named_with_its_origin(
    words: list[str], faults: list[str], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = complain(*pretrain(text, tmp_path / "out", *words, "--quiet"))
    for fault in faults:
        assert fault in message
    assert [entry for entry in tree(tmp_path) if not entry.startswith(".cache")] == []


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ("[modle]\ndim = 3\n", "unknown section 'modle'; did you mean 'model'?"),
        ("[model]\ndmi = 3\n", "unknown key 'model.dmi'; did you mean 'model.dim'?"),
        ("[model]\ndim = '3'\n", "model.dim='3': input should be a valid integer"),
        ("[model\n", "not TOML"),
        ("dim = 3\n", "'dim' stands outside any section"),
        ("extends = 'gtp.toml'\n", "extends='gtp.toml', which is not there"),
        ("[train]\nsteps = 1\nepochs = 1\nbatch_size = 1\n", "exclude each other"),
        ("[train]\nsteps = 1\n", "give one of batch_size, batch_tokens: none is given"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_named(recipe: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe)
    message = complain("pretrain", path, "--out", tmp_path / "out")
    assert "mine.toml" in message
    assert fault in message
    assert list(tree(tmp_path)) == ["mine.toml"]


# -- the run folder ------------------------------------------------------------------------------------------------


def test_a_folder_with_other_files_is_not_taken(text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    for flags in ([], ["--overwrite"], ["--dry-run"]):
        message = complain(*pretrain(text, tmp_path / "out", *flags))
        assert message == f"{tmp_path / 'out'}: holds other files (thesis.txt); give another --out"
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_named(text: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert complain(*pretrain(text, file)) == f"{file}: is a file; give another --out"
    message = complain(*pretrain(text, file / "run"))
    assert message == f"{file / 'run'}: cannot be written (Not a directory); give another --out"
    message = complain(*pretrain(text, tmp_path / "out", data__cache=str(file / "cache")))
    assert message.startswith(f"{file}")
    assert "Not a directory" in message
    assert list(tree(tmp_path)) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(text: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    out = tmp_path / "locked" / "run"
    assert complain(*pretrain(text, out)) == f"{out}: cannot be written (Permission denied); give another --out"


@pytest.fixture
def hold() -> Iterator[list[subprocess.Popen[str]]]:
    held: list[subprocess.Popen[str]] = []
    yield held
    for process in held:
        process.communicate("")


@pytest.mark.parametrize("flags", [["--resume"], ["--overwrite"]])
def test_a_run_that_another_process_writes_is_refused(
    flags: list[str], text: Path, run: Path, hold: list[subprocess.Popen[str]]
) -> None:
    command = [sys.executable, "-c", HOLD, str(run / ".lock")]
    hold.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    assert hold[0].stdout.readline() == "held\n"
    before = tree(run)
    message = complain(*pretrain(text, run, *flags))
    assert message == f"{run}: another process is writing this run; wait for it or give another --out"
    assert tree(run) == before
    hold.pop().communicate("")
    words = pretrain(text, run, *flags, train__checkpoint_every=2)
    assert nlpstack(*words).code == 0


def test_a_run_that_is_about_to_start_is_refused_too(
    text: Path, tmp_path: Path, hold: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", HOLD, str(out / ".lock")]
    hold.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    assert hold[0].stdout.readline() == "held\n"
    assert "another process is writing this run" in complain(*pretrain(text, out))
    assert list(tree(out)) == [".lock"]


def test_changed_values_are_listed_and_nothing_is_changed(text: Path, run: Path) -> None:
    before = tree(run)
    message = complain(*pretrain(text, run, "--resume", "--seed", 2, train__checkpoint_every=2, optim__lr=0.5))
    assert message == (
        f"{run}: --resume with changed values (optim.lr: then 0.002, now 0.5; train.seed: then 1, now 2); put them back"
    )
    assert tree(run) == before


def test_values_that_say_when_to_look_may_change(text: Path, run: Path) -> None:
    (run / "results.json").unlink()
    before = weights_hash(run)
    words = pretrain(text, run, "--resume", "--json", train__checkpoint_every=1, train__log_every=1, train__val_every=1)
    assert nlpstack(*words).json["weights"] == before


def test_changed_data_is_named(run: Path, tmp_path: Path) -> None:
    mine = write_text(tmp_path)
    (run / "results.json").unlink()
    before = tree(run)
    message = complain(*pretrain(mine, run, "--resume", train__checkpoint_every=2))
    assert "data.paths: then [" in message
    assert tree(run) == before

    words = pretrain(mine, tmp_path / "runs" / "b", train__checkpoint_every=2)
    assert nlpstack(*words).code == 0
    (tmp_path / "runs" / "b" / "results.json").unlink()
    mine.write_text(mine.read_text() + "one more line\n")
    message = complain(*words, "--resume")
    assert "--resume with other contents than before: data_train, data_val" in message
    assert message.endswith("put them back")


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(text: Path, run: Path) -> None:
    before, log = weights_hash(run), (run / "metrics.jsonl").read_text().split("\n")
    (run / "results.json").unlink()
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert steps[-2:] == ["step-00000004", "step-00000005"]
    weights = run / "checkpoints" / steps[-1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = nlpstack(*pretrain(text, run, "--resume", "--json", train__checkpoint_every=2))
    assert f"damaged checkpoint passed over: {weights}" in done.err
    assert "resumed after step 4 of 5" in done.err
    assert done.json["weights"] == before
    clocks = {"seconds", "tokens_per_second", "utilisation", "memory_bytes"}
    for then, now in zip(log, (run / "metrics.jsonl").read_text().split("\n"), strict=True):
        if then:
            same = [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in (then, now)]
            assert same[0] == same[1]


def test_a_run_without_a_whole_checkpoint_says_so(text: Path, run: Path) -> None:
    (run / "results.json").unlink()
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    message = complain(*pretrain(text, run, "--resume", train__checkpoint_every=2))
    assert "no checkpoint is whole" in message
    assert "start again with --overwrite" in message


def test_a_run_without_its_config_is_not_gone_on_with(text: Path, run: Path) -> None:
    (run / "config.toml").unlink()
    before = tree(run)
    assert "without its config.toml" in complain(*pretrain(text, run, "--resume"))
    assert "a run stands here" in complain(*pretrain(text, run))
    assert tree(run) == before


# -- models --------------------------------------------------------------------------------------------------------


def test_every_file_of_a_model_folder_is_known(model: Path) -> None:
    assert {path.name for path in model.iterdir()} == {*MODEL_FILES, "manifest.json", "README.md"}


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_damaged_file_of_a_model_is_named(name: str, damage: str, model: Path, text: Path) -> None:
    file = model / name
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] if damage == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1]))
    for words in (["generate", "--model", model], ["eval", model, "--data", text]):
        message = complain(*words)
        if name == "config.json" and damage == "missing":  # then it is no model folder at all
            assert message.startswith(f"{model}: holds no model: neither config.json and model.safetensors")
        else:
            assert message.startswith(f"{file}: ")
            assert message.endswith("copy the folder again, or save the model again")
    if name.startswith("tokenizer"):
        assert str(file) in complain("tokenizer", "encode", "--tokenizer", model)
    file.write_bytes(whole)
    assert nlpstack("generate", "--model", model, "--max-new-tokens", 1).code == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"../x": {}}}', b"\xff"])
def test_a_damaged_manifest_is_named(content: bytes, model: Path) -> None:
    (model / "manifest.json").write_bytes(content)
    assert str(model / "manifest.json") in complain("generate", "--model", model)


def test_a_damaged_model_does_not_start_a_run(text: Path, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")
    assert "model.safetensors: 0 bytes" in complain(*pretrain(text, tmp_path / "out", "--model", model))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(text: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "tok"
    words = ["tokenizer", "train", "--data", text, "--vocab-size", 600, "--out", other]
    assert nlpstack(*words).code == 0
    message = complain(*pretrain(text, tmp_path / "out", "--model", model, "--tokenizer", other))
    assert f"{other}: not the tokenizer of the model {model}; leave --tokenizer out" in message
    shutil.copy(other / "tokenizer.model", model)
    assert f"{model / 'tokenizer.model'}: " in complain("generate", "--model", model)
    (model / "manifest.json").unlink()
    message = complain("generate", "--model", model)
    assert "the tokenizer has 600 ids and the model 500, so they do not belong together" in message


class Exploit:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin", "model.pt", "torch"])
def test_a_pickle_is_refused_and_not_run(kind: str, model: Path, text: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (model / "manifest.json").unlink()
    (model / "model.safetensors").unlink()
    file = model / ("model.safetensors" if kind == "torch" else kind)
    if kind == "torch":
        torch.save({"x": Exploit(trap)}, file)
    else:
        file.write_bytes(pickle.dumps(Exploit(trap)))
    target = file if kind == "model.pt" else model
    for words in (
        ["generate", "--model", target],
        ["eval", target, "--data", text],
        pretrain(text, tmp_path / "out", "--model", target),
    ):
        message = complain(*words)
        assert f"{file}: a pickle, which can run any code" in message
        assert "get the model as model.safetensors" in message
    assert not trap.exists()


def test_weights_that_do_not_fit_are_named(model: Path) -> None:
    (model / "manifest.json").unlink()
    tensors = load_file(model / "model.safetensors")
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, model / "model.safetensors")
    message = complain("generate", "--model", model)
    assert f"{model / 'model.safetensors'}: lacks {name}" in message


def test_a_run_that_has_no_model_yet_says_how_to_get_one(run: Path, text: Path) -> None:
    shutil.rmtree(run / "model")
    assert "resume it: the command that started it, with --resume" in complain("generate", "--model", run)


# -- the other commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdin", [b"500", b"-1", b"1 2 500", b"[500]", b'{"ids": [500]}', b"99999999999999999999"])
def test_an_id_out_of_range_is_named(stdin: bytes, finished: Path) -> None:
    message = complain("tokenizer", "decode", "--tokenizer", finished, stdin=stdin)
    assert message.startswith("standard input: ")
    assert message.endswith("is no id of this tokenizer, whose ids are 0 to 499")


@pytest.mark.parametrize(
    "stdin", [b"one", b"1.5", b"[1, 2.0]", b'{"id": [1]}', b"[", b"[" * 100_000, b"[true]", b'{"ids": 3}', b"1\xff"]
)
def test_what_is_no_id_is_refused(stdin: bytes, finished: Path) -> None:
    message = complain("tokenizer", "decode", "--tokenizer", finished, stdin=stdin)
    assert message.startswith("standard input: ")


def test_a_prompt_longer_than_the_context_is_refused(finished: Path) -> None:
    message = complain("generate", "--model", finished, "--prompt", "q" * 99)
    assert message.startswith("prompt 1 has 99 tokens, the model's context holds 32")
    assert "shorten it" in message


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--greedy", "--temperature", 2], "greedy with temperature=2"),
        (["--prompts", "/no/file"], "/no/file: cannot be read (No such file or directory)"),
        (["--top-p", 2], "top_p=2"),
        (["--max-new-tokens", 0], "max_new_tokens=0"),
        (["--device", "cuda"], "use --device cpu or auto"),
    ],
)
def test_generate_refuses_what_cannot_be_meant(
    words: list[object], fault: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fault in complain("generate", "--model", finished, *words)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["--metric", "perplexty"],
            "--metric perplexty: not a metric of the task causal_lm; did you mean 'perplexity'?",
        ),
        (["--split", "test"], "--split test: the data has no such split; it has: train, val"),
        (["--split", "dev"], "'dev' is not one of 'train', 'val', 'test'"),
        (["--window", 64], "eval.window=64 is more than the model's max_seq_len=32"),
        (["--stride", 33], "eval.stride=33 is more than the window of 32"),
        (["--window", 8, "--stride", 9], "stride=9 is more than window=8"),
        (["--window", -1], "--window"),
        (["--set", "eval.widow=3"], "unknown key 'eval.widow'; did you mean 'eval.window'?"),
        (["--set", "train.steps=3"], "unknown section 'train'; there are: eval"),
        (["--dtype", "fp16"], "use bf16 or fp32"),
        (["--device", "cuda"], "use --device cpu or auto"),
        (["--save", "/no/such/results.json"], "--save /no/such/results.json: there is no folder /no/such"),
        (["--data", "/no/text.txt"], "/no/text.txt: no such file or folder"),
    ],
    ids=str,
)
def test_eval_refuses_what_cannot_be_meant(
    words: list[object], fault: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = tree(run)
    assert fault in complain("eval", run, *words)
    assert tree(run) == before


def test_eval_names_a_model_that_is_not_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{run.parent / 'tinny'}: no such file or folder; did you mean" in complain("eval", run.parent / "tinny")
    assert "not a run, so it names no data; give --data FILE|DIR" in complain("eval", run / "model")
    monkeypatch.chdir(tmp_path / "runs" / "tiny")
    assert "no model given and no finished run under runs/; make one with: nlpstack pretrain" in complain("eval")


@pytest.mark.parametrize(
    ("n", "told"),
    [(0, ""), (1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4 and 1 more"), (1_500, "4 and 1,495 more")],
)
def test_of_many_names_the_first_are_told_and_how_many_more(n: int, told: str) -> None:
    assert some(range(n)).endswith(told)
    assert some(range(n)).count(",") <= 5
