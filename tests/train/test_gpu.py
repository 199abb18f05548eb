"""What is promised of a GPU; each claim is tried on the CPU too, so that the test itself is known to work."""

import json

import pytest
import torch

from nlpstack.decode import Sampling, decode
from nlpstack.job import RunOptions
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.model.losses import linear_cross_entropy
from nlpstack.pretrain import pretrain
from nlpstack.signals import Stopped, StopSignal
from nlpstack.train.runtime import autocast
from tests.tiny_recipe import TINY, tiny_text

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = ["fp32", "bf16"]
SHAPE = {"vocab_size": 97, "max_seq_len": 32, "dim": 64, "n_layers": 2, "n_heads": 4}


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "fp32"), *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in DTYPES)]
)
def test_a_stopped_and_resumed_run_equals_the_unbroken_one(device, dtype, tmp_path):
    data = tiny_text(tmp_path)
    more = [f"train.device={device}", f"train.dtype={dtype}", "train.deterministic=true", "train.compile=false"]
    given = [*TINY, f"data.paths={json.dumps([str(data)])}", *more]
    whole = pretrain("gpt", given, out=tmp_path / "whole")
    stop = StopSignal()
    stop.signum = 15  # as if it had come at once: the first step is finished and saved
    with pytest.raises(Stopped):
        pretrain("gpt", given, out=tmp_path / "broken", options=RunOptions(stop=stop))
    resumed = pretrain("gpt", given, out=tmp_path / "broken", resume=True)
    assert whole.weights == resumed.weights
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_logits_are_those_of_float64(device, positions):
    model = GPT.create(TransformerConfig(**SHAPE, positions=positions), seed=0)
    tokens = torch.randint(97, (3, 32), generator=torch.Generator().manual_seed(0))
    exact = model.double()(tokens)
    found = model.float().to(device)(tokens.to(device)).cpu()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-4 * exact.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
def test_padding_changes_no_real_token(device):
    config = TransformerConfig(**SHAPE, causal=False, pre_norm=False, n_segments=2)
    model = BERT.create(config, seed=0).eval().to(device)
    tokens = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones(2, 32, dtype=torch.bool, device=device)
    mask[:, 20:] = False
    padded = torch.cat((tokens, tokens.new_zeros(2, 12)), dim=1)
    torch.testing.assert_close(model(padded, mask=mask)[:, :20], model(tokens), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_in_bf16_are_near_those_of_float64(device):
    model = GPT.create(TransformerConfig(**SHAPE), seed=0)
    rows = torch.randint(97, (4, 33), generator=torch.Generator().manual_seed(0))

    def gradient(dtype: str) -> torch.Tensor:
        place = model.unembedding.device
        with autocast(place, dtype):
            hidden = model.transformer(rows[:, :-1].to(place))
            loss = linear_cross_entropy(hidden, model.unembedding, rows[:, 1:].to(place), 64)
        model.zero_grad()
        loss.backward()
        return torch.cat([parameter.grad.flatten().double().cpu() for parameter in model.parameters()])

    model.double()
    exact = gradient("fp32")
    model.float().to(device)
    for dtype, allowed in (("fp32", 1e-3), ("bf16", 0.05)):
        assert (gradient(dtype) - exact).norm() < allowed * exact.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_writes_what_each_prompt_writes_alone(device, tmp_path):
    from nlpstack.prepare import train_tokenizer_on

    tokenizer = train_tokenizer_on([str(tiny_text(tmp_path))], {"kind": "char"}, tmp_path / "tokenizer")
    config = TransformerConfig(**{**SHAPE, "vocab_size": tokenizer.vocab_size})
    model = GPT.create(config, seed=0, tokenizer=tokenizer).to(device)
    texts, rule = ["First Citizen", "All", "Speak, speak."], Sampling(greedy=True, max_new_tokens=12)
    together, _ = decode(model, tokenizer, texts, rule)
    alone = [decode(model, tokenizer, [text], rule)[0][0].text for text in texts]
    assert [one.text for one in together] == alone
