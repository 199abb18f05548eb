"""Writing after a prompt: from the tokens that training puts before a completion."""

import pytest

from nlpstack.data.labelled import PromptExample
from nlpstack.data.readers import mute
from nlpstack.decode import Sampling
from nlpstack.model import GPT, TransformerConfig
from nlpstack.tasks.base import TaskConfig
from nlpstack.tasks.generation import Generation
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer


def test_a_prompt_is_gone_on_from_the_very_tokens_that_training_puts_before_its_completion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = train_tokenizer(["name Zizzi type pub\nZizzi is a pub\n"], TokenizerConfig(kind="char"))
    shape = TransformerConfig(vocab_size=tokenizer.vocab_size, max_seq_len=64, dim=8, n_layers=1, n_heads=1)
    task = Generation(tokenizer, shape, TaskConfig(name="generation"))
    example = PromptExample("here", "name Zizzi type pub", "Zizzi is a pub", ("Zizzi is a pub",))
    (row,) = task.encode([example], "train", mute).rows
    asked: list[list[int]] = []

    def note_prompts(model, tokenizer, prompts, sampling, **more):  # type: ignore[no-untyped-def]
        asked.extend(tokens for _, tokens in prompts)
        return [], None

    monkeypatch.setattr("nlpstack.tasks.generation.decode", note_prompts)
    task.write(GPT.create(shape, seed=0, tokenizer=tokenizer), [example], Sampling(greedy=True))
    n_counted = row.labels[1]  # the completion and the end
    assert asked == [row.tokens[: len(row.tokens) - n_counted + 1].tolist()]
    assert asked[0][0] == tokenizer.bos_id
