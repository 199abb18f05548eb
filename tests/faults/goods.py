"""Small whole folders and files of every kind that nlpstack reads, two of each, to be damaged."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nlpstack.hub import save_model, weights_hash
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.model.heads import Labels
from nlpstack.model.lora import LoRAConfig, add_lora
from nlpstack.samples import sample
from nlpstack.tokenizer import SentencePieceTokenizer, TokenizerConfig, train_tokenizer
from nlpstack.tokenizer.published import _BYTE_OF
from nlpstack.train.checkpoint import Checkpoint, Checkpoints
from tests.tiny import nlpstack, pretrain, write_text

VOCAB = 340
GPT2 = TransformerConfig(vocab_size=VOCAB, max_seq_len=16, dim=16, n_layers=1, n_heads=2, activation="gelu_tanh")
LLAMA = replace(GPT2, positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, tied=False, n_kv_heads=1)
OWN = replace(GPT2, positions="sinusoidal", activation="relu")
SHAPE_OF_BERT = replace(GPT2, causal=False, pre_norm=False, n_segments=2, activation="gelu")


def tokenizer(start: int = 0) -> SentencePieceTokenizer:
    """A tokenizer of VOCAB pieces; another stretch of text gives another one."""
    text = sample("shakespeare").read_text("utf-8")[start : start + 20_000]
    return train_tokenizer([text], TokenizerConfig(vocab_size=VOCAB, character_coverage=0.98))


def model_folders(place: Path) -> dict[str, tuple[Path, Path]]:
    """Two whole model folders of each kind, by its name; all but the sharded ones with our manifest."""
    words = [tokenizer(), tokenizer(200_000)]
    labels = Labels(("bad", "good", "so-so"))
    for number, ours in enumerate(words):
        at = place / str(number)
        made: dict[str, GPT | BERT] = {
            "gpt2": GPT.create(GPT2, seed=number, tokenizer=ours),
            "llama": GPT.create(LLAMA, seed=number, tokenizer=ours),
            "own": GPT.create(OWN, seed=number, tokenizer=ours),
            "bert": BERT.create(SHAPE_OF_BERT, seed=number, tokenizer=ours),
            "classifier": BERT.create(
                SHAPE_OF_BERT, seed=number, tokenizer=ours, heads=("pooler", "sequence"), labels=labels
            ),
            "tagger": BERT.create(SHAPE_OF_BERT, seed=number, tokenizer=ours, heads=("tokens",), labels=labels),
        }
        for name, model in made.items():
            save_model(model, at / name)
        adapter(at, number, ours)
        shard(at / "llama", at / "sharded")
    names = [*made, "adapter", "headed-adapter", "sharded"]
    return {name: (place / "0" / name, place / "1" / name) for name in names}


def adapter(place: Path, seed: int, ours: SentencePieceTokenizer) -> None:
    """A LoRA on the GPT-2 and one with a classifier on the BERT that stand beside them."""
    gpt = GPT.create(GPT2, seed=seed, tokenizer=ours)
    bert = BERT.create(
        SHAPE_OF_BERT, seed=seed, tokenizer=ours, heads=("pooler", "sequence"), labels=Labels(("no", "yes"))
    )
    for model, base, name in ((gpt, "gpt2", "adapter"), (bert, "bert", "headed-adapter")):
        add_lora(model, LoRAConfig(rank=2, alpha=4, targets=["q_proj", "v_proj"]))
        for part, weight in model.named_parameters():  # it trains what is not the base's
            weight.requires_grad_("lora_" in part or "classifier" in part or "pooler" in part)
        model.base = str(place / base), weights_hash(place / base)
        save_model(model, place / name)


def shard(source: Path, target: Path) -> None:
    """A folder with the weights in two files and an index, as large models are published."""
    shutil.copytree(source, target)
    (target / "manifest.json").unlink()
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, target / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def gguf_file(folder: Path, target: Path) -> Path:
    """The GGUF file of a folder of the Llama family, with a tokenizer of bytes."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    others = [f"x{number}" for number in range(VOCAB - len(_BYTE_OF) - 3)]
    pieces = [*_BYTE_OF, "xy", "ab", *others, "<|endoftext|>"]
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target, "llama")
    for key, value in {
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [1] * (VOCAB - 1) + [3],
        "tokenizer.ggml.merges": ["x y", "a b"],
        "tokenizer.ggml.bos_token_id": VOCAB - 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }.items():
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        writer.add_tensor(f"{known.get_name(module)}.{part}", np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def tokenizer_folders(place: Path, models: dict[str, tuple[Path, Path]]) -> dict[str, tuple[Path, Path]]:
    """Two tokenizer folders of each kind: ours, tokenizer.json alone, WordPiece, and byte BPE."""
    made: dict[str, list[Path]] = {}
    for number, (gpt2, bert) in enumerate(zip(models["gpt2"], models["bert"], strict=True)):
        at = place / str(number)
        files: dict[str, dict[str, bytes]] = {
            "sentencepiece": {name: (gpt2 / name).read_bytes() for name in ("tokenizer.model", "tokenizer.json")},
            "tokenizer.json": {n: (bert / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")},
            "wordpiece": wordpiece(number),
            "byte-bpe": byte_bpe(number),
        }
        for name, contents in files.items():
            folder = at / name
            folder.mkdir(parents=True)
            for file, data in contents.items():
                (folder / file).write_bytes(data)
            made.setdefault(name, []).append(folder)
    return {name: (one, two) for name, (one, two) in made.items()}


def wordpiece(number: int = 0) -> dict[str, bytes]:
    """BERT's vocab.txt and tokenizer_config.json."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "king", "##s", f"w{number}", *"abcdefgh"]
    config = {"do_lower_case": True, "chat_template": "{{ messages[0].content }}"}
    return {"vocab.txt": "\n".join(words).encode() + b"\n", "tokenizer_config.json": json.dumps(config).encode()}


def byte_bpe(number: int = 0) -> dict[str, bytes]:
    """GPT-2's vocab.json and merges.txt."""
    pieces = [*_BYTE_OF, "th", "the", ("an", "in")[number], "<|endoftext|>"]
    merges = "#version: 0.2\nt h\nth e\n" + ("a n", "i n")[number] + "\n"
    vocabulary = json.dumps({piece: at for at, piece in enumerate(pieces)}).encode()
    said = json.dumps({"bos_token": {"content": "<|endoftext|>"}}).encode()
    return {"vocab.json": vocabulary, "merges.txt": merges.encode(), "special_tokens_map.json": said}


def checkpoint_folder(place: Path, seed: int = 0) -> Path:
    """A `checkpoints/` folder with two of a few tensors."""
    checkpoints, generator = Checkpoints(place), torch.Generator().manual_seed(seed)
    for step in (5, 10):
        tensors = {name: torch.randn(3, 4, generator=generator) for name in ("w", "b")}
        state = {"step": step, "tokens": 7, "rng": {"cpu": "00ff"}, "optimizer": {"w.step": 3.0}, "log_bytes": 0}
        checkpoints.save(Checkpoint(tensors, {"w.exp_avg": tensors["w"]}, state), best_step=5)
    return place


def finished_run(place: Path) -> tuple[Path, list[Any]]:
    """A run of a few steps, with two checkpoints, and the words of the command that goes on with it."""
    place.mkdir(parents=True, exist_ok=True)
    words = pretrain(write_text(place), place / "run", "--quiet", train__checkpoint_every=2)
    assert nlpstack(*words).code == 0
    return place / "run", [*words, "--resume"]


def refit_manifest(folder: Path) -> None:
    """Make a folder's manifest say what its files now hold, as one would who altered both."""
    path = folder / "manifest.json"
    names = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in (path.name, "README.md")]
    told = {
        file.name: {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in names
    }
    path.write_text(json.dumps({"files": told}))
