"""The command and its function on a small saved model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest
import torch
from click.testing import CliRunner, Result

from nlpstack.cli.generate import generate_command, make_sampling, sampling_options
from nlpstack.decode import Sampling, decode
from nlpstack.errors import ConfigError, DataError, ModelError, NlpstackError
from nlpstack.generate import default_prompts, generate, read_prompts
from nlpstack.hub import load_model, save_model
from nlpstack.model import GPT
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from tests.decode.fakes import random_model

TEXT = "The cat sat on the mat.\nDer Käse ist größer als 5 €.\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model and one validation sample."""
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    tokenizer = train_tokenizer([TEXT], TokenizerConfig(kind="char"))
    model = random_model(vocab_size=tokenizer.vocab_size, activation="gelu_tanh")
    model.tokenizer = tokenizer
    save_model(model, folder / "model")
    lines = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "samples": [{"prompt": "old", "text": "x"}]},
        {"step": 3, "samples": [{"prompt": "The", "text": "x"}, {"prompt": "Käse", "text": ""}]},
        {"step": 4, "loss": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    return folder


@pytest.fixture
def model(run: Path) -> GPT:
    return load_model(run)


def command(*args: object) -> Result:
    result = CliRunner().invoke(generate_command, [str(arg) for arg in args])
    if isinstance(result.exception, NlpstackError):
        raise result.exception
    return result


def test_a_folder_and_its_model_give_the_same_text(run: Path, model: GPT) -> None:
    sampling = Sampling(max_new_tokens=30, seed=4)
    expected, _ = decode(model, model.tokenizer, ["The", ""], sampling)
    for source in (run, str(run / "model"), model):
        result = generate(source, ["The", ""], sampling)
        assert (result.generations, result.dtype, result.device) == (expected, "fp32", "cpu")
    for one in expected:
        assert one.text == model.tokenizer.decode(one.tokens)


def test_a_model_of_the_caller_stays_as_it_is(model: GPT) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    low = generate(model, ["The"], Sampling(max_new_tokens=5), dtype="bf16")
    assert low.dtype == "bf16"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_are_cast(run: Path, model: GPT, dtype: str) -> None:
    sampling = Sampling(max_new_tokens=12, greedy=True)
    cast = load_model(run).to({"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
    expected = decode(cast, model.tokenizer, ["The", "a"], sampling)[0]
    assert generate(run, ["The", "a"], sampling, dtype=dtype).generations == expected


def test_what_cannot_be_generated_from_is_refused(run: Path, model: GPT, tmp_path: Path) -> None:
    model.tokenizer = None
    with pytest.raises(ModelError, match="the model: has no tokenizer"):
        generate(model, ["a"])
    save_model(model, tmp_path / "bare")
    with pytest.raises(ModelError, match="bare: has no tokenizer"):
        generate(tmp_path / "bare", ["a"])
    with pytest.raises(ConfigError, match="dtype 'fp8' is unknown; give one of fp32, bf16, fp16"):
        generate(run, ["a"], dtype="fp8")
    with pytest.raises(ConfigError, match="expected a list of texts"):
        generate(run, "a text")
    with pytest.raises(DataError, match="33 tokens, the model's context holds 32"):
        generate(run, ["a" * 33])


def test_threads_are_set_for_the_call_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = GPT.next_logits

    def counting(self: GPT, *args, **kwargs) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(GPT, "next_logits", counting)
    command("--model", run, "--prompt", "The", "--max-new-tokens", 1, "--threads", 2)
    assert (seen, torch.get_num_threads()) == ([2], 1)


def test_default_prompts_are_those_of_the_last_validation(run: Path, tmp_path: Path) -> None:
    assert default_prompts(run) == default_prompts(str(run / "model")) == ["The", "Käse"]
    assert default_prompts(tmp_path) == [""]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[1]\n')
    assert default_prompts(tmp_path) == [""]


def test_prompts_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    for data, prompts in [
        (b"one\ntwo\n", ["one", "two"]),
        (b"\xef\xbb\xbfone\r\n\r\ntwo", ["one", "", "two"]),
        ("a\u2028b\x0bc\n".encode(), ["a\u2028b\x0bc"]),
        (b"\n", [""]),
    ]:
        path.write_bytes(data)
        assert read_prompts(path) == prompts
    path.write_bytes(b"one\ntw\xffo\n")
    with pytest.raises(DataError, match=r"prompts.txt:2: not UTF-8 at byte 6 \(0x..\); convert the file to UTF-8"):
        read_prompts(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"prompts.txt: is empty"):
        read_prompts(path)
    with pytest.raises(DataError, match=r"none.txt: cannot be read \(No such file"):
        read_prompts(tmp_path / "none.txt")


def test_json_is_one_line_with_an_entry_a_prompt(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The\n\nKäse\n")
    result = command("--model", run, "--prompts", file, "--json", "--max-new-tokens", 9, "--seed", 3, "--top-k", 5)
    assert result.stdout.count("\n") == 1
    expected = generate(run, ["The", "", "Käse"], Sampling(max_new_tokens=9, seed=3, top_k=5)).generations
    assert json.loads(result.stdout) == [
        {"prompt": one.prompt, "text": one.text, "tokens": len(one.tokens), "stopped_by": one.stopped_by}
        for one in expected
    ]
    assert f"prompts: 3 ({file})" in result.stderr


def test_json_has_an_entry_a_sample_in_prompt_order(run: Path) -> None:
    options = ["--model", run, "--prompt", "The", "--prompt", "", "--json", "--max-new-tokens", 9]
    result = command(*options, "--samples", 3, "--seed", 2)
    expected = generate(run, ["The", ""], Sampling(max_new_tokens=9, samples=3, seed=2)).generations
    assert json.loads(result.stdout) == [
        {
            "prompt": one.prompt,
            "sample": n % 3,
            "text": one.text,
            "tokens": len(one.tokens),
            "stopped_by": one.stopped_by,
        }
        for n, one in enumerate(expected)
    ]
    assert "prompts: 2 (--prompt)" in result.stderr
    (one,) = json.loads(command(*options[:4], "--json", "--max-new-tokens", 4, "--beams", 3, "--logprobs").stdout)
    (beam,) = generate(run, ["The"], Sampling(max_new_tokens=4, beams=3, logprobs=True)).generations
    parts = zip(beam.tokens, beam.pieces, beam.logprobs, strict=True)
    assert one == {
        "prompt": "The",
        "text": beam.text,
        "tokens": len(beam.tokens),
        "stopped_by": beam.stopped_by,
        "score": beam.score,
        "logprobs": [{"id": token, "text": text, "logprob": logprob} for token, text, logprob in parts],
    }
    assert sum(part["logprob"] for part in one["logprobs"]) / len(beam.tokens) == pytest.approx(one["score"], rel=1e-5)


def test_every_option_of_sampling_has_a_flag() -> None:
    flags = {
        "max_new_tokens": (["--max-new-tokens", 5], 5),
        "min_new_tokens": (["--min-new-tokens", 2], 2),
        "greedy": (["--greedy"], True),
        "temperature": (["--temperature", 0.5], 0.5),
        "top_k": (["--top-k", 3], 3),
        "top_p": (["--top-p", 0.5], 0.5),
        "min_p": (["--min-p", 0.5], 0.5),
        "beams": (["--beams", 2], 2),
        "length_penalty": (["--length-penalty", 0.5], 0.5),
        "repetition_penalty": (["--repetition-penalty", 1.5], 1.5),
        "frequency_penalty": (["--frequency-penalty", 0.5], 0.5),
        "presence_penalty": (["--presence-penalty", -0.5], -0.5),
        "penalize_prompt": (["--no-penalize-prompt"], False),
        "no_repeat_ngram": (["--no-repeat-ngram", 2], 2),
        "logit_bias": (["--bias", "a=2", "--bias", "id:300=-1", "--bias", "==0.5"], {"a": 2.0, 300: -1.0, "=": 0.5}),
        "banned": (["--ban", "a", "--ban", "id:300"], ("a", 300)),
        "forced": (["--force", "T", "--force", "h"], ("T", "h")),
        "stop": (["--stop", "a", "--stop", "id:3"], ("a", "id:3")),
        "samples": (["--samples", 2], 2),
        "logprobs": (["--logprobs"], True),
        "seed": (["--seed", 8], 8),
    }
    read = click.command()(sampling_options(lambda **options: make_sampling(options)))
    assert set(flags) == set(Sampling.__dataclass_fields__)
    for name, (words, value) in flags.items():
        needed = ["--beams", 2] if name == "length_penalty" else []
        sampling, given = read.main([str(word) for word in [*words, *needed]], standalone_mode=False)
        assert getattr(sampling, name) == value != getattr(Sampling(), name)
        assert given == {name, *(["beams"] if needed else [])}


def test_several_texts_of_a_prompt_are_told_apart(run: Path) -> None:
    result = command("--model", run, "--prompt", "The", "--prompt", "D", "--samples", 2, "--max-new-tokens", 5)
    texts = [
        one.prompt + one.text for one in generate(run, ["The", "D"], Sampling(max_new_tokens=5, samples=2)).generations
    ]
    headings = [f"--- prompt {n}, text {k}" for n in (1, 2) for k in (1, 2)]
    assert result.stdout == "".join(f"{heading}\n{text}\n" for heading, text in zip(headings, texts, strict=True))
    result = command("--model", run, "--prompt", "The", "--beams", 3, "--samples", 2, "--max-new-tokens", 5)
    assert result.stdout.count(", score -") == 2
    assert "sampling: max_new_tokens 5, beams 3, length_penalty 1.0 (default), samples 2\n" in result.stderr


def test_logprobs_are_shown_a_line_a_token(run: Path) -> None:
    options = ["--model", run, "--prompt", "The", "--max-new-tokens", 4, "--greedy", "--logprobs"]
    (one,) = generate(run, ["The"], Sampling(max_new_tokens=4, greedy=True, logprobs=True)).generations
    lines = command(*options).stdout.removeprefix("The" + one.text).splitlines()[1:]
    parts = zip(one.logprobs, one.tokens, one.pieces, strict=True)
    assert [line.split(maxsplit=2) for line in lines] == [
        [f"{lp:.4f}", str(token), repr(text)] for lp, token, text in parts
    ]


def test_the_text_goes_to_stdout_and_the_report_to_stderr(run: Path) -> None:
    options = ["--model", run, "--max-new-tokens", 40, "--temperature", 0]
    result = command(*options)
    sampling = Sampling(max_new_tokens=40, temperature=0)
    texts = [one.prompt + one.text for one in generate(run, ["The", "Käse"], sampling).generations]
    assert result.stdout == "\n---\n".join(texts) + "\n"
    for said in [
        f"prompts: 2 (none given; those of the last validation of {run})",
        "sampling: max_new_tokens 40, temperature 0.0\n",
        "speed: prefill 7 tokens",
        "tokens/s",
        "on cpu in fp32",
        "context: full",
    ]:
        assert said in result.stderr
    assert command(*options, "--quiet").stderr == ""
    one = command("--model", run, "--prompt", "The", "--prompt", "Der", "--greedy", "--stop", "e", "--stop", "a")
    assert one.stdout.startswith("The")
    assert "prompts: 2 (--prompt)" in one.stderr
    assert "max_new_tokens 128 (default), greedy True, stop ('e', 'a')\n" in one.stderr
    drawn = command("--model", run, "--prompt", "The", "--max-new-tokens", 2)
    assert "temperature 1.0 (default), top_k 0 (default), top_p 1.0 (default), seed 0 (default)\n" in drawn.stderr


@pytest.mark.parametrize("eos_first", [False, True])
def test_on_a_terminal_one_prompt_is_streamed(run: Path, eos_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _: True)
    if eos_first:
        plain = GPT.next_logits

        def ending(self: GPT, *args, **kwargs) -> torch.Tensor:
            logits = plain(self, *args, **kwargs)
            logits[:, self.tokenizer.eos_id] = 1e6
            return logits

        monkeypatch.setattr(GPT, "next_logits", ending)
    written: list[str] = []
    echo = click.echo
    monkeypatch.setattr(click, "echo", lambda text, **options: (written.append(text), echo(text, **options)))
    result = command("--model", run, "--prompt", "The", "--max-new-tokens", 20, "--quiet")
    (one,) = generate(run, ["The"], Sampling(max_new_tokens=20)).generations
    assert result.stdout == f"The{one.text}\n"
    assert len(written) == 1 if eos_first else len(written) > 10


def test_the_command_refuses_what_cannot_be_meant(run: Path) -> None:
    for options, message in [
        (["--greedy", "--top-p", 0.5], "greedy with top_p=0.5"),
        (["--prompt", "a", "--prompts", "b"], "--prompt and --prompts: give one or the other"),
        (["--prompt", "a" * 50], "prompt 1 has 50 tokens, the model's context holds 32"),
        (["--beams", 3, "--temperature", 0.7], "beams=3 with temperature=0.7: beam search draws nothing"),
        (["--beams", 3, "--prompt", "a"], "prompt 1 has 1 tokens, with max_new_tokens=128 that is 129"),
        (["--samples", 2, "--greedy"], "samples=2 with greedy"),
        (["--length-penalty", 2], "length_penalty=2.0 without beams"),
        (["--prompt", "a", "--bias", "the cat=1"], "logit_bias: unknown token 'the cat', the tokenizer cuts it into 7"),
        (
            ["--prompt", "a", "--bias", "id:99999=1"],
            "logit_bias: unknown token 99999, the tokenizer's ids run from 0 to",
        ),
        (["--bias", "the"], "--bias 'the': expected TOKEN=NUMBER"),
        (["--bias", "=2"], "--bias '=2': expected TOKEN=NUMBER"),
        (["--bias", "a=x"], "--bias 'a=x': expected TOKEN=NUMBER"),
        (["--bias", "a=1", "--bias", "a=2"], "--bias 'a=2': 'a' has a bias already, 1.0"),
        (["--prompt", "a", "--ban", "a", "--force", "a"], "is banned and forced"),
        (["--prompt", "a", "--ban", "id:0"], "banned: token 0 is a special one"),
    ]:
        with pytest.raises(NlpstackError, match=re.escape(message)):
            command("--model", run, *options)


def test_help_shows_the_defaults_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from nlpstack.cli.generate import generate_command as c; c(['--help'], standalone_mode=False);"
        "print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert '\n    nlpstack generate --model runs/gpt --prompt "First of all,"' in done.stdout
    words = " ".join(done.stdout.split())
    defaults = Sampling()
    assert (defaults.temperature, defaults.top_k, defaults.top_p, defaults.greedy) == (1, 0, 1, False)
    for option, default in [("max-new-tokens", defaults.max_new_tokens), ("seed", defaults.seed)]:
        assert f"[default: {default}]" in words.partition(f"--{option} ")[2].partition(" --")[0]
