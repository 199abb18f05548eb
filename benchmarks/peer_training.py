"""The peer's side of training.py: transformers' Trainer (and peft) on the rows that training.py wrote.

    python benchmarks/peer_training.py ROWS.npz --variant default|best|compiled [--device cpu|cuda] [--losses N]

"default" is the Trainer as it comes, in fp32; "best" has bf16 products where the machine has fast ones and batches of
like length; "compiled" is that through torch.compile. Batch, lengths, dropout, activation, clipping, warm-up and
workers are ours. Weights and the optimizer's state are fp32 in all.
"""

import argparse
import json
import tempfile
from typing import Any

import numpy as np
from pairs import Gauge, missing, tell

IGNORED = -100


def make_model(shape: dict[str, Any]) -> Any:
    """A fresh model of the shape."""
    from transformers import BertConfig, BertForPreTraining, BertForTokenClassification, GPT2Config, GPT2LMHeadModel

    if shape["kind"] == "gpt":
        dropouts = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), shape["dropout"])
        sizes = {"n_embd": shape["dim"], "n_layer": shape["layers"], "n_head": shape["heads"]}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=shape["vocab"], n_positions=shape["length"], use_cache=False, **sizes, **dropouts)
        )
    config = BertConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["dim"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["dim"],
        max_position_embeddings=shape["length"],
        hidden_dropout_prob=shape["dropout"],
        attention_probs_dropout_prob=shape["dropout"],
        num_labels=shape.get("labels", 2),
    )
    if shape["kind"] == "pairs":
        return BertForPreTraining(config)
    model = BertForTokenClassification(config)
    if not shape["rank"]:
        return model
    from peft import LoraConfig, get_peft_model

    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    return get_peft_model(
        model, LoraConfig(task_type="TOKEN_CLS", r=shape["rank"], lora_alpha=16, target_modules=targets)
    )


def read_rows(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The shape, and the rows as the Trainer's collators take them."""
    with np.load(path) as found:
        shape = json.loads(str(found["shape"]))
        cuts = np.cumsum(found["lengths"])[:-1]
        rows = [{"input_ids": ids.tolist()} for ids in np.split(found["tokens"], cuts)]
        if shape["kind"] == "gpt":
            return shape, [{**row, "labels": row["input_ids"]} for row in rows]
        if shape["kind"] == "ner":
            labels = np.split(found["labels"], cuts)
            return shape, [{**row, "labels": own.tolist()} for row, own in zip(rows, labels, strict=True)]
        marks = set(shape["marks"])
        for row, n_first, following in zip(rows, found["n_first"], found["following"], strict=True):
            ids = row["input_ids"]
            row["token_type_ids"] = [int(place >= n_first) for place in range(len(ids))]
            row["special_tokens_mask"] = [int(token in marks) for token in ids]
            row["next_sentence_label"] = int(following)
        return shape, rows


def make_collator(shape: dict[str, Any]) -> Any:
    """The collator of the task, with a tokenizer that has nothing but the vocabulary's size and the marks."""
    import tokenizers
    from transformers import (
        DataCollatorForLanguageModeling,
        DataCollatorForTokenClassification,
        PreTrainedTokenizerFast,
        default_data_collator,
    )

    if shape["kind"] == "gpt":
        return default_data_collator
    names = {f"t{token}": token for token in range(shape["vocab"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"t{shape['pad']}", mask_token=f"t{shape['mask']}", unk_token="t0"
    )
    if shape["kind"] == "ner":
        return DataCollatorForTokenClassification(tokenizer)
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=shape["share"])


def make_trainer(shape: dict[str, Any], rows: list[dict[str, Any]], given: argparse.Namespace, out: str) -> Any:
    """The Trainer, whose steps a Gauge counts or, with `--losses`, whose losses are kept."""
    import torch
    import transformers

    losses: list[Any] = []
    gauge = None if given.losses else Gauge(warmup=given.warmup, steps=given.steps, device=given.device)

    class Counting(transformers.Trainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.n_tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
            loss = super().training_step(model, inputs, *more)
            losses.append(loss.detach())
            return loss

    class Steps(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if gauge is not None:
                losses.clear()
                control.should_training_stop = not gauge.step(trainer.n_tokens)
            elif state.global_step == given.losses:
                tell(losses=torch.stack(losses).tolist())
                control.should_training_stop = True

    tuned = given.variant != "default"
    arguments = transformers.TrainingArguments(
        output_dir=out,
        max_steps=shape["steps"],
        per_device_train_batch_size=shape["batch"],
        learning_rate=shape["lr"],
        lr_scheduler_type="linear",
        warmup_steps=shape["warmup"],
        weight_decay=shape["decay"],
        adam_beta2=0.999,
        max_grad_norm=shape["clip"],
        bf16=tuned and shape["bf16"],
        train_sampling_strategy="group_by_length" if tuned else "random",
        torch_compile=given.variant == "compiled",
        dataloader_num_workers=1,  # we have one thread
        seed=given.seed,
        use_cpu=given.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Counting(
        model=make_model(shape),
        args=arguments,
        train_dataset=rows,
        data_collator=make_collator(shape),
        callbacks=[Steps()],
    )
    return trainer


def main() -> None:
    """Train until nothing more is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("rows")
    options.add_argument("--variant", choices=("default", "best", "compiled"), default="default")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--warmup", type=int, default=3)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--losses", type=int, default=0)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    shape, rows = read_rows(given.rows)
    for package in ("transformers", *(("peft",) if shape.get("rank") else ())):
        try:
            __import__(package)
        except ImportError:
            missing(package)
    import torch

    torch.manual_seed(given.seed)
    with tempfile.TemporaryDirectory() as out:
        make_trainer(shape, rows, given, out).train()


if __name__ == "__main__":
    main()
