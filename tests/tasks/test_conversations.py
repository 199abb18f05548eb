"""Conversations as data: all that the assistant says counts, as its template writes it, from training to prediction."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nlpstack.data.batch import IGNORE_INDEX
from nlpstack.data.labelled import PromptExample
from nlpstack.data.readers import mute
from nlpstack.decode import Sampling
from nlpstack.hub import load_model
from nlpstack.tasks import generation
from nlpstack.tasks.base import TaskConfig
from nlpstack.tasks.generation import Generation
from nlpstack.tokenizer import chat
from nlpstack.tokenizer.chat import Chat
from tests.talks import CHATML, LLAMA, TALK, as_dicts, save_model, transformers
from tests.tiny import nlpstack
from tests.tiny_labelled import finetune

SHORT = TALK[:3]
ROWS = [
    {"messages": as_dicts(TALK)},
    {"prompt": "who are you?", "completion": "the cat"},
    {"messages": as_dicts(SHORT)},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("chat") / "base", CHATML)


def write(folder: Path, **splits: list) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


def example(talk, where: str = "here") -> PromptExample:
    return PromptExample(where, "unrolled", talk[-1][1], (talk[-1][1],), tuple(talk))


def task_of(folder: Path, **values: object) -> Generation:
    model = load_model(folder)
    return Generation(model.tokenizer, model.config, TaskConfig(name="generation", **values))


def test_the_loss_is_that_of_transformers_on_what_the_assistant_says(base: Path) -> None:
    task, model = task_of(base), load_model(base)
    talks = [TALK, SHORT]
    rows = task.encode([example(talk) for talk in talks], "train", mute)
    batch = rows.batch([(0, 0), (0, 1)])
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    theirs = transformers.LlamaForCausalLM.from_pretrained(base).eval()
    total = n_counted = 0
    for row, talk in zip(rows.rows, talks, strict=True):
        told = tokenizer.apply_chat_template(as_dicts(talk), return_assistant_tokens_mask=True)
        ids, mask = (torch.tensor(told[name][:-1]) for name in ("input_ids", "assistant_masks"))  # without the line end
        labels = torch.where(mask.bool(), ids, IGNORE_INDEX)
        assert row.tokens.tolist() == ids[:-1].tolist()
        assert row.labels[0].tolist() == labels[1:].tolist()
        n_counted += row.labels[1]
        with torch.no_grad():
            total += theirs(input_ids=ids[None], labels=labels[None]).loss.item() * row.labels[1]
    assert batch.n_targets == {"lm": n_counted}
    said = [text for talk in talks for role, text in talk if role == "assistant"]
    assert n_counted == sum(len(task.tokenizer.encode(text)) + 1 for text in said)
    with torch.no_grad():
        assert task.loss(model, batch)["lm"].item() == pytest.approx(total, rel=1e-5)


def test_a_conversation_is_trained_on_scored_and_gone_on_with(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data", train=ROWS * 3, val=ROWS)
    run = tmp_path / "run"
    assert finetune("generation", run, base, data).code == 0
    assert (run / "model" / "chat_template.jinja").read_text() == CHATML
    entry = json.loads((run / "results.json").read_text())["results"][0]["metrics"]["loss"]
    tokenizer = load_model(run).tokenizer
    said = [text for talk in (TALK, SHORT) for role, text in talk if role == "assistant"] + ["the cat"]
    assert entry["n"] == sum(len(tokenizer.encode(text)) + 1 for text in said)
    assert "|chat:" in entry["signature"]
    (scored,) = nlpstack("eval", run, "--data", data / "val.jsonl", "--json", "--set", "eval.new_tokens=4").json[
        "results"
    ]
    assert scored["metrics"]["loss"]["value"] == pytest.approx(entry["value"], rel=1e-2)  # that was in bf16
    assert (scored["metrics"]["loss"]["n"], scored["metrics"]["bleu"]["n"]) == (entry["n"], 3)
    unanswered = write(tmp_path / "asked", val=[{"messages": row["messages"][:-1]} for row in (ROWS[0], ROWS[2])])
    texts = [
        [json.loads(line)["text"] for line in nlpstack("predict", "--model", run, source, "--json").out.splitlines()]
        for source in (data / "val.jsonl", unanswered / "val.jsonl")
    ]
    assert [texts[0][0], texts[0][2]] == texts[1]
    assert len(texts[0]) == 3


def test_a_prompt_is_the_conversation_before_the_last_answer(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def note_prompts(model, tokenizer, prompts, sampling, **more):  # type: ignore[no-untyped-def]
        asked.extend(tokens for _, tokens in prompts)
        return [], None

    monkeypatch.setattr(generation, "decode", note_prompts)
    task, model = task_of(base), load_model(base)
    plain = PromptExample("here", "p", None, ())
    task.write(model, [example(TALK), plain, example(TALK[:2]), example(SHORT)], Sampling(greedy=True))
    first, second = Chat(task.tokenizer, "m").prompts([TALK[:4], TALK[:2]])
    assert asked == [first, [0, *task.tokenizer.encode("p\n")], second, second]
    # It is what training puts before the answer.
    (row,) = task.encode([example(TALK)], "train", mute).rows
    assert row.tokens[: len(first)].tolist() == first
    counted = np.flatnonzero(row.labels[0] != IGNORE_INDEX)
    assert counted[-len(task.tokenizer.encode("no")) - 1] == len(first) - 1


def test_without_a_template_a_conversation_is_a_prompt_of_lines(tmp_path: Path) -> None:
    task = task_of(save_model(tmp_path / "base", None))
    talk = example(TALK)._replace(prompt="user: a\nassistant:")
    plain = talk._replace(messages=())
    both = task.encode([talk, plain], "train", mute).rows
    assert both[0].tokens.tolist() == both[1].tokens.tolist()
    assert both[0].labels[0].tolist() == both[1].labels[0].tolist()
    assert "chat" not in task.reading(load_model(tmp_path / "base"), None)


def test_plain_prompts_need_no_jinja_though_there_is_a_template(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "find_spec", lambda name: None)
    (row,) = task_of(base).encode([PromptExample("here", "p", "c", ("c",))], "train", mute).rows
    assert row.labels[1] == 2


@pytest.mark.parametrize(
    ("row", "template", "fault"),
    [
        (
            {"messages": as_dicts([("user", "the cat " * 90), ("assistant", "no")])},
            CHATML,
            "have [0-9]{3} tokens, the model's context 128; a completion is never cut, nor a conversation; shorten it",
        ),
        ({"messages": as_dicts([("user", "a"), ("user", "b"), ("assistant", "c")])}, LLAMA, "roles must alternate"),
        ({"messages": as_dicts(TALK)}, "{{ messages | length }}", "in another way once more follows"),
        ({"messages": as_dicts(TALK[:2])}, CHATML, "'messages' must be a list of objects, the last the assistant's"),
        ({"messages": as_dicts(TALK[2:3])}, CHATML, "'messages' must be a list of objects"),
        ({"messages": [["user", "a"], ["assistant", "b"]]}, CHATML, "'messages' must be a list of objects"),
        ({"messages": [{"role": "user", "content": ["a"]}, *as_dicts(SHORT)]}, CHATML, "'content' must be a text"),
        ({"messages": [{"content": "a"}, *as_dicts(SHORT)]}, CHATML, "'role' must be a text"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_is_one_line_with_its_place(
    row: dict, template: str, fault: str, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", template)
    data = write(tmp_path / "data", train=[ROWS[1], ROWS[1], row], val=[ROWS[1]])
    outcome = finetune("generation", tmp_path / "run", base, data, "--set", "task.truncate=true")
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"nlpstack: {data / 'train.jsonl'}:3: "), last
    assert re.search(fault, last), last


def test_a_field_of_another_name_is_no_conversation(base: Path, tmp_path: Path) -> None:
    rows = [{**ROWS[1], "turns": [1, 2]}] * 4
    assert finetune("generation", tmp_path / "run", base, write(tmp_path / "data", train=rows)).code == 0
