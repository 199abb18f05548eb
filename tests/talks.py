"""Small published tokenizers with chat templates, and the conversations that tests hold."""

import json
from functools import cache
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = "the cat sat on the mat. Der Käse ist größer als 5 €.\nuser assistant system answers: who are you?\n"

CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}\n"
    "{% for message in messages %}\n"
    "    {%- if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\\n' }}\n"
    "    {%- else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endif %}\n{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n"
)
LLAMA = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
CONTROLLED = (
    "{{ bos_token }}{{ pad_token }}{% set seen = namespace(n=0) %}\n"
    "{% for message in messages %}\n"
    "  {% if message.role == 'system' and not message.content %}{% continue %}{% endif %}\n"
    "  {% set seen.n = seen.n + 1 %}\n"
    "{{ seen.n }} {{ message | tojson }}{{ message.content | tojson(indent=2, ensure_ascii=False) }}"
    "{% if tools is not none or documents is defined and documents %}tools{% endif %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "  {% if seen.n > 40 %}{% break %}{% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ seen.n + 1 }} {% endif %}"
)
# What the assistant says begins inside a token, whose first character the template writes.
INSIDE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ 'answers: ' }}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.role + ': ' + message.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'answers: ' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "controlled": CONTROLLED, "inside": INSIDE}

TALK = [
    ("system", "Be kind."),
    ("user", "who are you?"),
    ("assistant", "the cat"),
    ("user", "5 €"),
    ("assistant", "no"),
]


def as_dicts(talk) -> list[dict[str, str]]:
    """A conversation as `transformers` takes it."""
    return [{"role": role, "content": content} for role, content in talk]


@cache
def byte_library():
    """GPT-2's kind of pieces, marks first."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([TEXT] * 9, trainer)
    return library


@cache
def space_library():
    """Llama's kind of pieces: a mark for a space, before a text too, and bytes for what no piece spells."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", *MARKS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    library.train_from_iterator([TEXT] * 9, trainer)
    spec = json.loads(library.to_str())
    spec["added_tokens"] = [one for one in spec["added_tokens"] if not one["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def save(folder: Path, template: str | None, kind: str = "byte") -> Path:
    """A tokenizer's folder as `transformers` writes it."""
    library = byte_library() if kind == "byte" else space_library()
    named = {"bos_token": MARKS[0], "eos_token": MARKS[2]} | ({} if kind == "byte" else {"unk_token": "<unk>"})
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, **named)
    theirs.add_special_tokens({"additional_special_tokens": MARKS[1:2]})
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    return folder


def save_model(folder: Path, template: str | None, context: int = 128) -> Path:
    """A tiny Llama of fresh weights, as `transformers` writes it, with that tokenizer."""
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    ids = dict(bos_token_id=0, eos_token_id=2, pad_token_id=None)
    config = transformers.LlamaConfig(vocab_size=400, max_position_embeddings=context, **shape, **ids)
    transformers.set_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return save(folder, template)
