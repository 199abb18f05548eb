"""No command opens a socket: from raw text through training, adapting, scoring, converting and talking to pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from tests import gguf_files, talks
from tests.tiny import pretrain, write_text
from tests.tiny_labelled import write_data

# Python itself tells of every socket that is made and every name that is looked up, by whatever library.
PROGRAM = """
import json, sys

asked = []

def watch(event, arguments):
    if event.startswith("socket."):
        asked.append(f"{event} {arguments}")

sys.addaudithook(watch)

from nlpstack.cli import _exit_code

for words in json.loads(sys.stdin.read()):
    code = _exit_code(words)
    if code or asked:
        sys.exit(f"{' '.join(words)}: exit code {code}, sockets: {asked}")
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.1).close()
except OSError:
    pass
sys.exit(0 if asked else "the watch sees nothing")
"""
SHORT = ["--threads", "1", "--quiet"]


def published(folder: Path) -> Path:
    """A Llama as transformers writes it, with GPT-2's kind of vocabulary."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": 64},
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    from tokenizers.pre_tokenizers import ByteLevel

    (folder / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate(sorted(ByteLevel.alphabet()))}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "published", "converted"])
def test_no_command_opens_a_socket(stage: str, tmp_path: Path) -> None:
    text = write_text(tmp_path)
    data, run, out = write_data(tmp_path), tmp_path / "run", tmp_path / "out"
    out.mkdir()
    first = [str(word) for word in pretrain(text, run, "--quiet")]
    attention = ["attention", "to be", "--model", str(run), "--out", str(out / "a.html")]
    commands = {
        "pretrain": [
            first,
            [*first, "--resume"],
            ["eval", str(run), "--save", str(out / "all.json"), "--report", str(out / "all.html"), *SHORT],
            ["generate", "--model", str(run), "--prompt", "To be", "--max-new-tokens", "4", *SHORT],
            [*attention, *SHORT],
            ["info", str(run)],
            ["doctor", "--out", str(tmp_path)],
            ["recipes"],
        ],
        "finetune": [
            first,
            [
                *("finetune", "--task", "generation", "--lora", "--model", str(run), "--data", str(data["generation"])),
                *("--out", str(tmp_path / "tuned"), "--set", "train.epochs=1", "--set", "train.batch_size=4", *SHORT),
            ],
            ["predict", str(next(data["generation"].glob("train.*"))), "--model", str(tmp_path / "tuned"), *SHORT],
            ["merge", str(tmp_path / "tuned"), "--out", str(tmp_path / "merged")],
        ],
        "published": [
            ["generate", "--model", str(tmp_path / "llama"), "--prompt", "To be", "--max-new-tokens", "4", *SHORT],
            ["eval", str(tmp_path / "llama"), "--data", str(text), *SHORT],
            ["embed", str(text), "--model", str(tmp_path / "llama"), "--out", str(out / "e.npy"), "--truncate", *SHORT],
        ],
        "converted": [
            ["convert", str(tmp_path / "old"), "--out", str(tmp_path / "new")],
            ["convert", str(tmp_path / "llama.gguf"), "--out", str(tmp_path / "folder")],
            ["generate", "--model", str(tmp_path / "llama.gguf"), "--prompt", "the", "--max-new-tokens", "4", *SHORT],
            [
                "generate",
                "--model",
                str(tmp_path / "talk"),
                "--chat",
                "--prompt",
                "who?",
                "--max-new-tokens",
                "4",
                *SHORT,
            ],
        ],
    }
    if stage == "published":
        published(tmp_path / "llama")
        lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()][:20]
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if stage == "converted":
        theirs = gguf_files.random_model("llama", tied=True)
        gguf_files.save(tmp_path / "llama.gguf", gguf_files.parts(theirs))
        theirs.config.save_pretrained(tmp_path / "old")
        torch.save(theirs.state_dict(), tmp_path / "old" / "pytorch_model.bin")
        talks.save_model(tmp_path / "talk", talks.CHATML)
    said = json.dumps(commands[stage])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=said, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
