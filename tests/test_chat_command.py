"""`nlpstack generate --chat`: a question is answered, and a talk goes on with all that was said in mind."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from nlpstack.decode import Sampling, decode
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.generate import generate
from nlpstack.hub import load_model, save_model
from nlpstack.model import BERT, TransformerConfig
from nlpstack.tokenizer.chat import Chat
from tests.talks import CHATML, LLAMA, TALK, as_dicts
from tests.talks import save_model as save_llama
from tests.tiny import nlpstack
from tests.tiny_labelled import bases  # noqa: F401 - a fixture

SHORT = ("--max-new-tokens", 6, "--greedy")
GREEDY = Sampling(max_new_tokens=6, greedy=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("chat") / "llama", CHATML)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """The conversations that generate is given."""
    found: list[list[tuple[str, str]]] = []

    def noting(model, prompts, *args, **more):
        found.extend([*prompt] for prompt in prompts)
        return generate(model, prompts, *args, **more)

    monkeypatch.setattr(import_module("nlpstack.generate"), "generate", noting)
    return found


def test_a_conversation_goes_on_from_its_templates_tokens(folder: Path) -> None:
    model = load_model(folder)
    talks = [TALK[:2], TALK[:4]]
    tokens = Chat(model.tokenizer, "m").prompts(talks)
    given = [(talk[-1][1], ids) for talk, ids in zip(talks, tokens, strict=True)]
    expected, _ = decode(model, model.tokenizer, [given[0], "the", given[1]], GREEDY)
    assert generate(folder, [talks[0], "the", talks[1]], GREEDY).generations == expected
    assert expected[0].n_prompt_tokens == len(tokens[0])


def test_a_question_is_answered(folder: Path) -> None:
    questions = ["who are you?", "the cat"]
    expected = generate(folder, [[("user", one)] for one in questions], GREEDY).generations
    words = ["generate", "--model", folder, "--chat", *SHORT]
    given = [word for one in questions for word in ("--prompt", one)]
    entries = nlpstack(*words, *given, "--json").json
    assert [(one["prompt"], one["text"]) for one in entries] == [(one.prompt, one.text) for one in expected]
    shown = nlpstack(*words, *given[:2])
    assert (shown.code, shown.out) == (0, f"who are you?\n{expected[0].text}\n")
    assert "prompts: 1 (--prompt)" in shown.err


def test_a_talk_remembers_what_was_said(folder: Path, asked: list) -> None:
    words = ["generate", "--model", folder, "--chat", *SHORT]
    outcome = nlpstack(*words, stdin="  who are you? \n\n  \r\nthe Käse".encode())
    first = generate(folder, [[("user", "who are you?")]], GREEDY).generations[0].text
    talk = [("user", "who are you?"), ("assistant", first.strip()), ("user", "the Käse")]
    second = generate(folder, [talk], GREEDY).generations[0].text
    assert asked == [talk[:1], talk]
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{first}\n{second}\n", "")
    entries = nlpstack(*words, "--json", stdin="who are you?\nthe Käse\n".encode()).out.splitlines()
    assert [(one["prompt"], one["text"]) for one in map(json.loads, entries)] == [
        ("who are you?", first),
        ("the Käse", second),
    ]
    assert nlpstack(*words) == (0, "", "")


def test_the_first_turns_are_forgotten_where_the_context_ends_and_that_is_said(tmp_path: Path, asked: list) -> None:
    folder = save_llama(tmp_path / "llama", LLAMA, context=64)
    words = ["generate", "--model", folder, "--chat", *SHORT]
    lines = [f"{n} the cat sat" for n in range(5)]
    outcome = nlpstack(*words, stdin="\n".join(lines).encode())
    assert outcome.code == 0
    assert len(outcome.out) > 5
    told = "(the conversation is longer than the context: its first turns are left out)\n"
    assert 0 < outcome.err.count(told) * len(told) == len(outcome.err)
    assert asked[-1][-1] == ("user", lines[-1])
    assert 1 < len(asked[-1]) < 9
    assert [role for role, _ in asked[-1]] == ["user", *["assistant", "user"] * (len(asked[-1]) // 2)]
    # A question that never fits is an error, after what came before it was answered.
    outcome = nlpstack(*words, stdin=("the cat\n" + "Käse " * 300).encode())
    assert outcome.code == 2
    assert outcome.err.count(told) <= 2
    assert "the model's context holds 64" in outcome.err.splitlines()[-1]


def test_what_cannot_talk_is_one_line(folder: Path, bases: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    for name, words in (("gpt", []), ("gpt", ["--prompt", "a"]), ("bert", [])):
        outcome = nlpstack("generate", "--model", bases[name], "--chat", *words, stdin=b"hello\n")
        assert "its tokenizer has no chat template; take a model that was made for conversations" in outcome.fault
        assert str(bases[name]) in outcome.fault
    tokenizer = load_model(folder).tokenizer
    tokenizer.cls_id = tokenizer.sep_id = 0
    shape = TransformerConfig(vocab_size=400, max_seq_len=32, dim=16, n_layers=1, n_heads=2, causal=False, n_segments=2)
    save_model(BERT.create(shape, seed=0, tokenizer=tokenizer), tmp_path / "bert")
    for words in ([], ["--prompt", "a"]):
        outcome = nlpstack("generate", "--model", tmp_path / "bert", "--chat", *words, stdin=b"hello\n")
        assert "a BERT, an encoder that sees both sides of a token" in outcome.fault
    words = ["generate", "--model", folder, "--chat"]
    assert "--samples 2: a conversation goes on with one text" in nlpstack(*words, "--samples", 2, stdin=b"a\n").fault
    assert "standard input" in nlpstack(*words, stdin=b"\xff\n").fault


def test_conversations_are_pairs(folder: Path) -> None:
    for wrong in ([], as_dicts(TALK), [("user",)], ["user"], [("user", None)], [["user", "a"]]):
        with pytest.raises(ConfigError, match=r"a conversation is a list of pairs \(role, content\)"):
            generate(folder, ["a", wrong])
    with pytest.raises(DataError, match="lone surrogate"):
        generate(folder, [[("user", "\ud800")]])
    with pytest.raises(DataError, match="the model's context holds 128"):
        generate(folder, [[("user", "Käse " * 300)]])
    model = load_model(folder)
    model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ModelError, match=r"^the model: its chat template fails \(TemplateError: no\)$"):
        generate(model, [[("user", "a")]])
