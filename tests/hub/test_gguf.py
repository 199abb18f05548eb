"""GGUF files are the models that llama.cpp's converter made them from; what is not whole is refused in one line."""

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.quantization_config import GgufConfig

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model, weights_hash
from nlpstack.model import LanguageModel
from tests.gguf_files import VOCAB, Parts, Type, parts, random_model, save

MODELS = [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False)]
QUANTISED = [Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.MXFP4]
QUANTISED += [Type.Q6_K, Type.Q4_K, Type.Q2_K, Type.IQ4_NL]
TOKENS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def same(ours: LanguageModel, other: LanguageModel) -> bool:
    one, two = ours.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def as_transformers_reads(file: Path) -> PreTrainedModel:
    asked = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **asked).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found = model(TOKENS)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize(("name", "tied"), MODELS)
def test_a_file_in_fp32_is_the_model_to_the_bit(name: str, tied: bool, tmp_path: Path) -> None:
    theirs = random_model(name, tied=tied)
    theirs.save_pretrained(tmp_path / "folder")
    file = save(tmp_path / "model.gguf", parts(theirs))
    ours, wanted = load_model(file), load_model(tmp_path / "folder")
    assert same(ours, wanted)
    assert ours.config == wanted.config
    assert not ours.training
    assert ours.config.tied == tied
    assert ours.tokenizer is not None
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(ours), logits(as_transformers_reads(file)), rtol=0, atol=1e-4)
    save_model(ours, tmp_path / "saved")
    assert same(load_model(tmp_path / "saved"), wanted)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in theirs.state_dict().items())
    assert len(weights_hash(file)) == 64


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_embedding_that_stands_there_twice_is_tied(name: str, tmp_path: Path) -> None:
    theirs = random_model(name, tied=True)
    once = load_model(save(tmp_path / "once.gguf", parts(theirs)))
    twice = load_model(save(tmp_path / "twice.gguf", parts(theirs, repeated=True)))
    assert same(once, twice)
    assert once.config == twice.config


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_head_that_is_quantised_otherwise_is_not_tied(name: str, tmp_path: Path) -> None:
    """llama.cpp keeps more bits of the head than of the embedding."""
    theirs = random_model(name, tied=True)
    made = parts(theirs, Type.Q4_0)
    made.tensors["output.weight"] = parts(theirs, Type.Q8_0, repeated=True).tensors["output.weight"]
    file = save(tmp_path / "model.gguf", made)
    ours = load_model(file)
    assert not ours.config.tied
    torch.testing.assert_close(logits(ours), logits(as_transformers_reads(file)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "tied"), MODELS)
def test_fp16_is_kept_if_asked_for(name: str, tied: bool, tmp_path: Path) -> None:
    theirs = random_model(name, tied=tied)
    file = save(tmp_path / "model.gguf", parts(theirs, Type.F16))
    theirs.half().save_pretrained(tmp_path / "folder")
    ours, half = load_model(file), load_model(file, dtype=torch.float16)
    assert {one.dtype for one in ours.parameters()} == {torch.float32}
    assert {one.dtype for one in half.parameters()} == {torch.float16}
    assert same(half, load_model(tmp_path / "folder", dtype=torch.float16))
    torch.testing.assert_close(logits(ours), logits(as_transformers_reads(file)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("gpt2", False)])
def test_what_is_quantised_is_read_as_transformers_reads_it(name: str, tied: bool, kind: Type, tmp_path: Path) -> None:
    wide = gguf.GGML_QUANT_SIZES[kind][0] > 64
    file = save(
        tmp_path / "model.gguf", parts(random_model(name, tied=tied, dim=256 if wide else 64, n_layers=1), kind)
    )
    theirs = as_transformers_reads(file)
    if name == "gpt2":
        del theirs.config.feed_forward_length  # no key of GPT-2's, whose own it leaves alone
    theirs.save_pretrained(tmp_path / "folder")
    ours = load_model(file)
    assert same(ours, load_model(tmp_path / "folder"))
    assert all(one.isfinite().all() for one in ours.parameters())
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)


def test_linear_stretching_of_positions_is_read(tmp_path: Path) -> None:
    theirs = random_model("llama", tied=False)
    theirs.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    theirs.save_pretrained(tmp_path / "folder")
    made = parts(theirs)
    made.values.update({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0})
    assert load_model(save(tmp_path / "model.gguf", made)).config == load_model(tmp_path / "folder").config


def test_an_alignment_of_its_own_is_kept(tmp_path: Path) -> None:
    made = parts(random_model("llama", tied=False))
    made.values["general.alignment"] = 256
    file = save(tmp_path / "wide.gguf", made)
    del made.values["general.alignment"]
    assert same(load_model(file), load_model(save(tmp_path / "usual.gguf", made)))


def test_a_changed_file_does_not_change_the_model(good: Path) -> None:
    """No tensor stays mapped."""
    model = load_model(good)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open(good, "r+b") as opened:
        opened.write(b"\xff" * good.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Bad files.


def made(name: str = "llama") -> Parts:
    return parts(random_model(name, tied=False, dim=32, n_layers=1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(tmp_path_factory.mktemp("gguf") / "good.gguf", made()).read_bytes()


@pytest.fixture
def good(whole: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "bad.gguf"
    file.write_bytes(whole)
    return file


def fault(file: Path, **options: Any) -> str:
    """The one line with which a file is refused, soon."""
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        load_model(file, **options)
    assert time.perf_counter() - start < 2
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{file}: "), message
    return message


def put(at: int | bytes, form: str, value: float, skip: int = 0) -> Callable[[bytes], bytes]:
    """Write a number at a place, or so many bytes behind (before, if negative) a text."""

    def change(data: bytes) -> bytes:
        place = at if isinstance(at, int) else data.index(at) + (len(at) if skip >= 0 else 0) + skip
        number = struct.pack(f"<{form}", value)
        return data[:place] + number + data[place + len(number) :]

    return change


TENSOR = b"token_embd.weight"  # behind it: n_dims, two sizes, type, offset
ARRAY = b"tokenizer.ggml.tokens"  # behind it: type of value, type in the list, length


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: b"", "cannot mmap an empty file"),
        (lambda data: b"GGUF", "ends within its header"),
        (lambda data: b"GGML" + data[4:], "no GGUF file of version 2 or 3"),
        (lambda data: b"PK\x03\x04" + data[4:], "no GGUF file"),
        (put(4, "I", 1), "no GGUF file of version 2 or 3"),
        (put(4, "I", 3 << 24), "version 2 or 3"),  # as on a big-endian machine
        (put(8, "Q", 2**63), "ends within its header"),
        (put(8, "Q", 100), ""),
        (put(8, "Q", 0), "says wrong sizes"),
        (put(8, "Q", 11), "says wrong sizes"),
        (put(16, "Q", 2**64 - 1), ""),
        (put(16, "Q", 0), ""),
        (put(24, "Q", 2**64 - 1), "ends within its header"),
        (put(24, "Q", 2**31), "ends within its header"),
        (put(ARRAY, "Q", 2**64 - 1, 8), "ends within its header"),
        (put(ARRAY, "I", 9, 4), "ends within its header"),
        (put(ARRAY, "I", 13, 0), "(13) is not a valid GGUFValueType"),
        (put(ARRAY, "I", 77, 4), "(77) is not a valid GGUFValueType"),
        (put(b"tokenizer.ggml.token_type", "Q", 2**62, 8), "ends within its header"),
        (put(TENSOR, "I", 2**32 - 1), "ends within its header"),
        (put(TENSOR, "I", 5), "a damaged one"),
        (put(TENSOR, "I", 0), ""),
        (put(TENSOR, "Q", 0, 4), "token_embd.weight"),
        (put(TENSOR, "Q", 2**62, 4), "or says of one that it is longer"),
        (put(TENSOR, "Q", 2**62, 12), "cannot reshape array"),
        (put(TENSOR, "Q", 31, 4), ""),
        (put(TENSOR, "Q", 8, 12), ""),
        (put(TENSOR, "I", 999, 20), "(999) is not a valid GGMLQuantizationType"),
        (put(TENSOR, "I", int(Type.Q4_K), 20), "not a multiple of Q4_K block size"),
        (put(TENSOR, "I", int(Type.I32), 20), "stored as I32, which `gguf` cannot read"),
        (put(TENSOR, "Q", 2**64 - 1, 24), "token_embd.weight"),
        (put(TENSOR, "Q", 10**9, 24), "ends within its header or a tensor"),
        (lambda data: data.replace(TENSOR, b"Token_embd.weight"), "pieces"),
        (lambda data: data.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "duplicated tensor"),
        (lambda data: data.replace(b"llama.context_length", b"llama.context_lengtH"), "llama.context_lengtH=32"),
        (lambda data: data.replace(b"llama.attention.head_count_kv", b"tokenizer.ggml.tokens\0\0\0\0\0\0\0\0"), ""),
        (lambda data: data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llamo"), "there are gpt2, llama"),
        (lambda data: data.replace(b"general.architecture", b"general.architecturE"), "there are gpt2, llama"),
        (lambda data: data.replace(b"llama.block_count", b"llama\nblock_count"), "what are no letters"),
        (lambda data: data.replace(b"output_norm.weight", b"output\x1bnorm.weight"), "what are no letters"),
        (lambda data: data[:-1], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
    ],
)
def test_a_file_that_lies_is_refused_in_one_line(good: Path, change: Callable[[bytes], bytes], part: str) -> None:
    load_model(good)
    good.write_bytes(change(good.read_bytes()))
    assert part in fault(good)


def test_a_file_that_ends_anywhere_is_refused(good: Path, whole: bytes) -> None:
    header = whole.index(b"output_norm.weight") + 60
    for end in [*range(0, 400), *range(400, header, 97), *range(header, len(whole), 4999)]:
        good.write_bytes(whole[:end])
        fault(good)


HUGE = {"llama.rope.dimension_count": 2**30 - 2}


@pytest.mark.parametrize(
    ("name", "values", "part"),
    [
        ("llama", {"llama.expert_count": 8}, "llama.expert_count=8 is not supported"),
        ("llama", {"llama.attention.sliding_window": 16}, "sliding_window=16 is not supported"),
        ("llama", {"llama.rope.dimension_count": 4}, "head_dim=4"),
        ("llama", {"llama.attention.key_length": 4}, "head_dim"),
        ("llama", {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}, "'yarn' is not supported"),
        ("llama", {"llama.rope.scaling.factor": 2.0}, "rope_scaling.factor=2.0 is not supported"),
        ("llama", {"llama.rope.freq_base": float("nan")}, "rope_theta=nan"),
        ("llama", {"llama.attention.layer_norm_rms_epsilon": float("inf")}, "rms_norm_eps=inf"),
        ("llama", {"llama.block_count": 2}, "lacks model.layers.1"),
        ("llama", {"llama.block_count": 2**32 - 1}, "too few for a block_count of 4294967295"),
        ("llama", {"llama.block_count": "1"}, "too few for a block_count of '1'"),
        ("llama", {"llama.block_count": 0}, ""),
        ("llama", {"llama.block_count": None}, "block_count of None"),
        ("llama", {"llama.vocab_size": 7}, "llama.vocab_size=7"),
        ("llama", {"llama.embedding_length": 64}, ""),
        ("llama", {"llama.embedding_length": 2**32 - 1}, ""),
        ("llama", {"llama.context_length": 0}, "max_position_embeddings=0: input should be greater than 0"),
        ("llama", {"llama.attention.head_count": 3}, ""),
        ("llama", {"llama.attention.head_count": 32}, ""),
        ("llama", {"llama.attention.head_count_kv": [2, 2]}, "num_key_value_heads"),
        ("llama", {"llama.attention.head_count_kv": 4}, "does not fit its metadata: model.layers.0.self_attn.k_proj"),
        ("llama", {f"llama.{key}_length": 2**32 - 8 for key in ("embedding", "feed_forward")} | HUGE, "no tensor can"),
        ("llama", {"llama.attention.head_count": None}, "num_attention_heads missing"),
        ("llama", {"general.alignment": 0}, "Invalid alignment"),
        ("llama", {"general.alignment": "32"}, "Bad type for general.alignment"),
        ("gpt2", {"gpt2.context_length": 31}, "does not fit"),
        ("gpt2", {"gpt2.feed_forward_length": 7}, "does not fit"),
        ("gpt2", {"gpt2.attention.layer_norm_epsilon": "x"}, "layer_norm_epsilon='x'"),
        ("llama", {"tokenizer.ggml.pre": "qwen2"}, "pre='qwen2' is not supported; there are gpt-2, smollm, llama-bpe"),
        ("llama", {"tokenizer.ggml.pre": "default"}, "pre='default' is not supported"),
        ("llama", {"tokenizer.ggml.pre": None}, "pre=None is not supported"),
        ("llama", {"tokenizer.ggml.pre": [1]}, "pre=[1] is not supported"),
        ("llama", {"tokenizer.ggml.model": "t5"}, "the kind 't5' is not supported; there are gpt2, llama"),
        ("llama", {"tokenizer.ggml.model": None}, "the kind None"),
        ("llama", {"tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": None}, "as many scores"),
        ("llama", {"tokenizer.ggml.tokens": None}, "lacks tokenizer.ggml.tokens"),
        ("llama", {"tokenizer.ggml.tokens": [f"x{n}" for n in range(VOCAB - 1)]}, "262 pieces of text, but vectors"),
        ("llama", {"tokenizer.ggml.tokens": [f"x{n}" for n in range(VOCAB + 1)]}, "264 pieces of text, but vectors"),
        ("llama", {"tokenizer.ggml.tokens": ["x"] * VOCAB}, "twice"),
        ("llama", {"tokenizer.ggml.tokens": [*range(VOCAB)]}, "tokenizer.ggml.tokens is no list"),
        ("llama", {"tokenizer.ggml.tokens": "abc"}, "tokenizer.ggml.tokens is no list"),
        ("llama", {"tokenizer.ggml.merges": [1]}, "tokenizer.ggml.merges is no list"),
        ("llama", {"tokenizer.ggml.merges": 1}, "tokenizer.ggml.merges is no list"),
        ("llama", {"tokenizer.ggml.merges": ["t", "h"]}, "`tokenizers` refuses it"),
        ("llama", {"tokenizer.ggml.merges": ["qq zz"]}, "`tokenizers` refuses it"),
        ("llama", {"tokenizer.ggml.token_type": 1}, "tokenizer.ggml.token_type is no list"),
    ],
)
def test_what_the_core_cannot_be_is_refused(name: str, values: dict[str, Any], part: str, tmp_path: Path) -> None:
    good = made(name)
    good.values.update(values)
    kept = {key: value for key, value in good.values.items() if value is not None}
    assert part in fault(save(tmp_path / "model.gguf", Parts(kept, good.tensors)))


def test_a_wrong_architecture_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    good = made()
    message = fault(save(tmp_path / "model.gguf", good, "qwen2"))
    assert "the architecture 'qwen2' is not supported; there are gpt2, llama" in message
    message = fault(save(tmp_path / "bert.gguf", good, "bert"))
    assert "'bert' is not supported" in message


def test_a_tensor_too_few_or_too_many_is_refused(tmp_path: Path) -> None:
    for extra in ("rope_freqs.weight", "model.norm.weight", "lm_head.weight", "blk.1.attn_q.weight"):
        good = made()
        good.tensors[extra] = np.ones(4, np.float32), Type.F32
        message = fault(save(tmp_path / "more.gguf", good))
        assert "no place for" in message
        assert extra in message
    for lacking in ("output_norm.weight", "token_embd.weight", "blk.0.attn_q.weight"):
        good = made()
        del good.tensors[lacking]
        fault(save(tmp_path / "fewer.gguf", good))


def test_a_missing_library_is_named_with_the_cure(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "opening it needs `gguf`; pip install 'nlpstack[gguf]'" in fault(good)


def test_a_whole_model_has_no_base(good: Path) -> None:
    assert "leave --base out" in fault(good, base=good)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_model(tmp_path / "none.gguf")


def test_whatever_is_damaged_gives_a_model_or_one_line(good: Path, whole: bytes) -> None:
    random = np.random.default_rng(7)
    end = whole.index(b"output_norm.weight") + 60
    n_models, messages = 0, list[str]()
    for number in range(400):
        data = bytearray(whole)
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(0, end if number % 5 else len(data)))
            other = int(random.integers(0, end))
            match number % 4:
                case 0:
                    data[at] ^= 1 << int(random.integers(8))
                case 1:
                    data[at] = int(random.integers(256))
                case 2:
                    data[at], data[other] = data[other], data[at]
                case _:
                    del data[at : at + int(random.integers(1, 40))]
        good.write_bytes(data)
        try:
            load_model(good)
            n_models += 1
        except ModelError as error:
            messages.append(str(error))
    assert 0 < n_models < 400
    assert [line for line in messages if "\n" in line or not line.startswith(f"{good}: ")] == []
