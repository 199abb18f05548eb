"""Adapters: `peft` opens ours on the same base, ours open here again, and one that `peft` wrote opens here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.utils import logging

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model, weights_hash
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.model.heads import Labels
from nlpstack.model.lora import LoRAConfig, add_lora, merge_lora
from tests.parity.test_bert import OURS, close, shaken

logging.set_verbosity_error()
logging.disable_progress_bar()

GPT2 = TransformerConfig(vocab_size=128, max_seq_len=32, dim=48, n_layers=2, n_heads=4, activation="gelu_tanh")
SHAPES = {
    "gpt2": GPT2,
    "llama": replace(
        GPT2, positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, ffn_dim=100, n_kv_heads=2
    ),
    **OURS,
}
KINDS = {
    "lora": {"targets": ["q_proj", "v_proj"]},
    "rslora": {"rslora": True, "targets": ["k_proj", "out_proj", "up_proj", "down_proj"]},
    "dora": {"dora": True, "targets": ["v_proj", "down_proj"]},
}
NAMES = ("O", "B-Ort", "I-Ort")
TOKENS = torch.randint(6, 128, (3, 24), generator=torch.Generator().manual_seed(1))


def base_model(family: str, folder: Path) -> tuple[BERT | GPT, str]:
    """A model of random weights, and where it is saved."""
    config = SHAPES[family]
    create = GPT.create if config.causal else BERT.create
    given = {} if config.causal else {"heads": ("mlm", "pooler")}  # no class of RoBERTa's tells the next sentence
    model = shaken(create(config, seed=0, **given))
    save_model(model, folder / "base")
    return model, str(folder / "base")


def adapted(family: str, folder: Path, head: str | None, **kind: object) -> BERT | GPT:
    """A model with adapters that do something and, of a BERT, a new classifier."""
    base, place = base_model(family, folder)
    model = base
    if head is not None:
        heads = ("pooler", "sequence") if head == "sequence" else ("tokens",)
        model = BERT.create(base.config, seed=1, heads=heads, labels=Labels(NAMES))
        model.load_state_dict(
            base.state_dict() | {n: t for n, t in model.state_dict().items() if "classifier" in n}, strict=False
        )
    add_lora(model, LoRAConfig(rank=3, alpha=5.0, **kind), seed=2)
    if head is not None:
        model.classifier.requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.base = place, weights_hash(place)
    return model.eval()


@torch.no_grad()
def logits_of(model: BERT | GPT) -> torch.Tensor:
    return model(TOKENS) if isinstance(model, GPT) else model.label_logits(model(TOKENS))


AUTO = {
    None: AutoModelForCausalLM,
    "sequence": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
}
CASES = [("gpt2", None), ("llama", None), ("bert", "sequence"), ("bert", "tokens"), ("roberta", "tokens")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "head"), CASES)
def test_peft_opens_our_adapter_with_the_same_logits(family, head, kind, tmp_path: Path) -> None:
    model = adapted(family, tmp_path, head, **KINDS[kind])
    save_model(model, tmp_path / "adapter")
    given = {"num_labels": 3} if head else {}
    base = AUTO[head].from_pretrained(tmp_path / "base", **given)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        close(logits_of(model), theirs(TOKENS).logits)
    again = load_model(tmp_path / "adapter")
    assert (again.base, getattr(again, "labels", None)) == (model.base, getattr(model, "labels", None))
    close(logits_of(model), logits_of(again))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name}
    assert all(torch.equal(again.get_parameter(name), parameter) for name, parameter in trained.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "head"), CASES)
def test_an_adapter_that_peft_wrote_opens_here(family, head, kind, tmp_path: Path) -> None:
    base_model(family, tmp_path)
    given = {"num_labels": 3} if head else {}
    base = AUTO[head].from_pretrained(tmp_path / "base", **given)
    targets = {"gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "v_proj", "up_proj"]}.get(
        family, ["query", "output.dense"]
    )
    config = LoraConfig(
        task_type={None: "CAUSAL_LM", "sequence": "SEQ_CLS", "tokens": "TOKEN_CLS"}[head],
        r=4,
        lora_alpha=6,
        target_modules=targets,
        init_lora_weights=False,
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        rank_pattern={"v_proj": 2},
        alpha_pattern={"v_proj": 9},
    )
    torch.manual_seed(0)
    theirs = get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    notes: list[str] = []
    model = load_model(tmp_path / "adapter", base=tmp_path / "base", note=notes.append)
    with torch.no_grad():
        close(logits_of(model), theirs(TOKENS).logits)
    assert len(notes) == 1
    assert "unproved" in notes[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "head"), CASES)
def test_a_merged_model_equals_base_and_adapter_and_opens_there(family, head, kind, tmp_path: Path) -> None:
    model = adapted(family, tmp_path, head, **KINDS[kind])
    before = logits_of(model)
    merge_lora(model)
    close(logits_of(model), before)
    model.base = None
    save_model(model, tmp_path / "merged")
    with torch.no_grad():
        close(AUTO[head].from_pretrained(tmp_path / "merged").eval()(TOKENS).logits, before)


def rewrite(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_adapter_is_refused_on_another_base(tmp_path: Path) -> None:
    save_model(adapted("bert", tmp_path, "tokens"), tmp_path / "adapter")
    other = shaken(BERT.create(OURS["bert"], seed=9))
    save_model(other, tmp_path / "other")
    with pytest.raises(ModelError, match=r"trained on another base than .*other.*--base DIR"):
        load_model(tmp_path / "adapter", base=tmp_path / "other")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("adapter_config.json", {"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
        ("adapter_config.json", {"bias": "all"}, "bias='all' is not supported"),
        ("adapter_config.json", {"use_qalora": True}, "use_qalora=True is not supported"),
        ("nlpstack.json", {"base": "gone"}, "its base gone is not there; give it with --base DIR"),
    ],
)
def test_what_is_not_ours_is_refused(file: str, values: dict, message: str, tmp_path: Path) -> None:
    save_model(adapted("bert", tmp_path, "tokens"), tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()
    rewrite(tmp_path / "adapter" / file, **values)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize("change", ["missing", "unused", "foreign", "shape", "head"])
def test_keys_that_are_missing_or_match_nothing_are_errors(change: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(adapted("bert", tmp_path, "tokens"), tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    if change == "missing":
        del tensors[name]
    elif change == "unused":
        tensors[name.replace("query", "quarry")] = tensors[name].clone()
    elif change == "foreign":
        tensors["base_model.model.score.weight"] = torch.ones(2)
    elif change == "shape":
        tensors[name] = tensors[name][:-1].clone()
    else:
        del tensors[next(name for name in tensors if "classifier" in name)]
    save_file(tensors, file)
    with pytest.raises(
        ModelError, match=r"adapter_model\.safetensors: .*(lacks|adapts|fit|no place for: score.weight)"
    ):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "head"), [case for case in CASES if case[0] != "gpt2"])
def test_steps_of_training_are_those_of_peft(family, head, kind, tmp_path: Path) -> None:
    """Gradients, and with them what is trained: c_attn of GPT-2 holds our three adapters in one, so not its."""
    model = adapted(family, tmp_path, head, **KINDS[kind])
    save_model(model, tmp_path / "adapter")
    given = {"num_labels": 3} if head else {}
    base = AUTO[head].from_pretrained(tmp_path / "base", **given)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    draw = torch.Generator().manual_seed(4)
    optimizers = [
        torch.optim.AdamW([one for one in each.parameters() if one.requires_grad], lr=1e-3) for each in (model, theirs)
    ]
    trained = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in optimizers]
    assert trained[0] == trained[1]
    for step in range(8):
        tokens = torch.randint(6, 128, (3, 24), generator=draw)
        logits = model(tokens) if head is None else model.label_logits(model(tokens))
        labels = torch.randint(logits.shape[-1], logits.shape[:-1], generator=draw)
        losses = [F.cross_entropy(one.flatten(0, -2), labels.flatten()) for one in (logits, theirs(tokens).logits)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4), step
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        close(logits_of(model), theirs(TOKENS).logits)
