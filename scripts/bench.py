"""Speed, side by side in one run: this project against transformers used the ordinary way.

`make bench` calls it. Each work is timed theirs, ours, theirs, ours...; the ratio is taken pair by
pair, because machines are noisy, and its median is what counts. Rows go to runs/bench.json.
Both sides run on the CPU in float32, with or without a GPU in the machine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from helpers import (
    config,
    corpus,
    files,
    finetune,
    glue,
    models,
    pretrain,
    synthetic,
    tokenizer,
    training,
)

LENGTH, VOCABULARY, DROPOUT, RATE = 128, 30_522, 0.1, 5e-4
PRODUCTS = "its matrix products alone"
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"

Timed = Callable[[int], float]


@dataclass(frozen=True)
class Work:
    """One comparison.

    Attributes:
        name: What is done.
        reference: What it is compared with.
        unit: Of `units`.
        units: Units of work in one step.
        steps: Steps in one timing.
        ours: Steps to seconds.
        theirs: The same, for the reference.
        goal: Ratio aimed at; None where there is none.
        flops: Matrix-product FLOP of our model per unit (``pretrain.flops_per_token``).
    """

    name: str
    reference: str
    unit: str
    units: float
    steps: int
    ours: Timed
    theirs: Timed
    goal: float | None = None
    flops: float | None = None


def compare(work: Work, pairs: int) -> dict[str, object]:
    """Times one work.

    Args:
        work: What to time.
        pairs: Timings of either side, alternating, after one that is thrown away.

    Returns:
        work, reference, ours and theirs (units per second, medians), ratio (median over pairs),
        ratio_low, ratio_high, goal, unit, n (pairs), gflops (of our model per second, or None).
    """
    found = []
    for number in range(pairs + 1):
        theirs, ours = work.theirs(work.steps), work.ours(work.steps)
        if number:
            found.append((theirs, ours))
    amount = work.units * work.steps
    ratios = [theirs / ours for theirs, ours in found]
    rate = amount / median(ours for _, ours in found)
    return {
        "work": work.name,
        "reference": work.reference,
        "ours": rate,
        "theirs": amount / median(theirs for theirs, _ in found),
        "ratio": median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "goal": work.goal,
        "unit": work.unit,
        "n": pairs,
        "gflops": rate * work.flops / 1e9 if work.flops else None,
    }


def timed(step: Callable[[], object]) -> Timed:
    """A timing of `step` repeated."""

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - began

    return seconds


class _Clock(TrainerCallback):
    """Times a Trainer's steps without its set-up."""

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        self.seconds = time.perf_counter() - self.began


def with_trainer(
    model: nn.Module, rows: list[dict], batch: int, collator: object, folder: Path
) -> Timed:
    """Transformers' Trainer over `rows`, timed from its first step to its last."""

    def seconds(steps: int) -> float:
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=RATE,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        clock = _Clock()
        trainer = Trainer(
            model, arguments, data_collator=collator, train_dataset=rows, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return clock.seconds

    return seconds


def our_step(task: nn.Module, rows: np.ndarray, batch: int, tok: PreTrainedTokenizerBase) -> Timed:
    """Optimiser steps of ``helpers.pretrain``; like a Trainer, each timing has a new optimiser."""
    vocabulary, generator = pretrain.Vocabulary.of(tok, torch.device("cpu")), torch.Generator()
    scaler = torch.amp.GradScaler(enabled=False)
    task.train()

    def seconds(steps: int) -> float:
        optimiser = pretrain.make_optimiser(task, task.spec.weight_decay, RATE)

        def step() -> None:
            tokens = torch.from_numpy(rows[:batch].astype(np.int64))
            pretrain.update(
                *(task, tokens, vocabulary, generator, optimiser, scaler, torch.float32, 1.0)
            )

        return timed(step)(steps)

    return seconds


def stock_rtd_step(task: nn.Module, rows: list[dict], batch: int, collator: object) -> Timed:
    """A plain ELECTRA loop over stock classes: logits at every position."""
    task.train()
    encoder = models.encoder(task.model)

    def step(optimiser: torch.optim.Optimizer) -> None:
        made = collator(rows[:batch])
        chosen, tokens = made["labels"] != -100, made["input_ids"].clone()
        logits = task.generator(made["input_ids"]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), made["labels"].flatten())
        noise = -torch.log(-torch.log(torch.rand_like(logits[chosen]).clamp(1e-9, 1 - 1e-7)))
        tokens[chosen] = (logits[chosen].detach() + noise).argmax(-1)
        original = torch.where(chosen, made["labels"], made["input_ids"])
        score = task.model.discriminator_predictions(encoder(tokens).last_hidden_state)
        replaced = (tokens != original).float()
        loss = loss + 50 * functional.binary_cross_entropy_with_logits(score, replaced)
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    def seconds(steps: int) -> float:
        optimiser = torch.optim.AdamW(task.parameters(), lr=RATE, fused=True)
        return timed(lambda: step(optimiser))(steps)

    return seconds


def build(name: str, size: str, *, fast: bool = True, dropout: float = DROPOUT) -> nn.Module:
    """A registry entry with the paper's vocabulary, and our attention or transformers' own."""
    torch.manual_seed(0)
    shape = models.get_size(size)
    return pretrain.build(models.get(name), shape, VOCABULARY, LENGTH, dropout, fast=fast)


def pretraining(size: str, batch: int, steps: int, folder: Path) -> list[Work]:
    """Pre-training steps of three models, then what switching one thing off costs."""
    texts = list(synthetic.documents(400, 400, 0))
    tok = tokenizer.train("wordpiece", VOCABULARY, lambda: iter(texts))
    rows = np.concatenate(list(tokenizer.pack(texts, tok, LENGTH)))
    examples = [{"input_ids": row.tolist()} for row in rows]
    if batch > len(rows):
        raise config.UserError(f"--batch {batch}: at most {len(rows)} segments are there")
    collator = DataCollatorForLanguageModeling(tok)

    def ours(task: nn.Module) -> Timed:
        return our_step(task, rows, batch, tok)

    def work(
        name: str, reference: str, task: nn.Module, other: Timed, goal: float | None = None
    ) -> Work:
        flops = pretrain.flops_per_token(task, LENGTH)
        amount = batch * LENGTH
        return Work(name, reference, "tokens/s", amount, steps, ours(task), other, goal, flops)

    works = []
    for name, goal in (("electra-deberta", 3.0), ("deberta", 3.0), ("bert", 1.6)):
        stock = build(name, size, fast=False)
        if models.get(name).objective == "rtd":
            reference = "stock classes, dense logits"
            theirs = stock_rtd_step(stock, examples, batch, collator)
        else:
            reference = "Trainer, stock class"
            theirs = with_trainer(stock.model, examples, batch, collator, folder)
        for dropout, note in ((DROPOUT, ""), (0.0, ", our dropout 0")):
            mine = build(name, size, dropout=dropout)
            found = work(
                f"pre-train {name}{note}", reference, mine, theirs, goal if dropout else None
            )
            works.append(found)
    deberta, bert = (build(name, size, dropout=0.0) for name in ("deberta", "bert"))
    gathers = ours(build("deberta", size, fast=False, dropout=0.0))
    dense = ours(Dense(build("bert", size, dropout=0.0)))
    works.append(work("deberta, dropout 0", "with stock attention", deberta, gathers))
    works.append(
        work("deberta, dropout 0", "with dropout 0.1", deberta, ours(build("deberta", size)))
    )
    works.append(work("bert, dropout 0", "with logits everywhere", bert, dense))
    for name, task in (("bert", bert), ("deberta", deberta)):
        peak = products(task, rows, batch, tok)
        works.append(work(f"{name}, dropout 0", PRODUCTS, task, peak, 0.65))
    return works


class Dense(nn.Module):
    """Our MLM objective with the logits of every position, as stock classes compute them."""

    def __init__(self, task: pretrain.MaskedLanguageModel) -> None:
        super().__init__()
        self.spec, self.model = task.spec, task.model

    def forward(
        self, tokens: torch.Tensor, vocabulary: pretrain.Vocabulary, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Loss of one batch."""
        masked = pretrain.mask_tokens(tokens, vocabulary, self.spec.masking, generator)
        labels = torch.full_like(tokens, -100).scatter(1, masked.positions, masked.targets)
        return {"loss": self.model(masked.inputs, labels=labels).loss}


class _Products(TorchDispatchMode):
    """Notes the shapes of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.shapes.append((args[0].shape, args[1].shape))
        elif name in ("addmm", "baddbmm"):
            self.shapes.append((args[1].shape, args[2].shape))
        elif name.startswith(ATTENTION):
            # Scores and context forward; backward again the scores and two gradients for each.
            back = name.endswith("backward")
            query = args[1 if back else 0].flatten(0, 1).shape
            heads, length, width = query
            one = (query, torch.Size((heads, width, length)))
            two = (torch.Size((heads, length, length)), query)
            self.shapes += [one, two] if not back else [one, one, two, two, two]
        return func(*args, **(kwargs or {}))


def products(task: nn.Module, rows: np.ndarray, batch: int, tok: PreTrainedTokenizerBase) -> Timed:
    """The matrix products of one training step at the same shapes, from contiguous operands.

    An estimate of what a step cannot do without: fused attention counts as the products it is.
    """
    noted = _Products()
    with noted:
        our_step(task, rows, batch, tok)(1)
    operands: dict[torch.Size, torch.Tensor] = {}
    for shape in (shape for pair in noted.shapes for shape in pair):
        if shape not in operands:
            operands[shape] = torch.randn(shape)

    def step() -> None:
        for one, two in noted.shapes:
            operands[one] @ operands[two]

    return timed(step)


def finetuning(size: str, data: str, batch: int, count: int, folder: Path) -> list[Work]:
    """One epoch over the first rows of three tasks, ours by length against padding to 128."""
    runs = folder / "runs"
    values = {"train_rows": count, "dev_rows": 8, "documents": 2000, "data": data}
    profile = config.load_profile("tiny", runs=str(runs), **values)
    stage = config.Data(**profile.stage(config.Data))
    corpus.run(stage)
    tok = tokenizer.train(
        "wordpiece", VOCABULARY, lambda: corpus.read(profile.folder / "data" / "corpus")
    )
    build("electra", size).model.save_pretrained(folder / "encoder")
    parameters = config.Finetune(
        **profile.stage(config.Finetune)
        | {"finetune_batch_size": batch, "max_length": LENGTH, "finetune_learning_rate": 1e-4}
    )
    works = []
    for name, goal in (("cola", 5.0), ("sst2", 5.0), ("rte", 1.5)):
        glue.run(stage, name)
        table, task = glue.load(profile.folder, name, "train"), glue.get(name)
        encoded = finetune.encode(table, task, tok, LENGTH)
        padded = tok(
            *(table[column].tolist() for column in task.columns),
            truncation="longest_first",
            max_length=LENGTH,
            padding="max_length",
        )
        tok.backend_tokenizer.no_truncation()
        tok.backend_tokenizer.no_padding()
        rows = [
            {key: padded[key][i] for key in padded} | {"label": int(label)}
            for i, label in enumerate(encoded.labels)
        ]
        stock = AutoModelForSequenceClassification.from_pretrained(folder / "encoder")
        mine = finetune.open_encoder(folder / "encoder", task, DROPOUT)

        def ours(epochs: int, mine: nn.Module = mine, encoded: finetune.Encoded = encoded) -> float:
            began = time.perf_counter()
            finetune.train(parameters, mine, encoded, tok, epochs, 0, torch.float32)
            return time.perf_counter() - began

        trainer = with_trainer(stock, rows, batch, None, folder)
        steps = -(-len(rows) // batch)
        source = "embedded world" if not data else f"{len(rows)} rows"
        works.append(
            Work(
                f"fine-tune {task.name} ({source})",
                f"Trainer, padded to {LENGTH}",
                "examples/s",
                len(rows),
                1,
                ours,
                lambda n, t=trainer, k=steps: t(n * k),
                goal,
            )
        )
    texts = list(corpus.read(profile.folder / "data" / "corpus"))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    def encode(steps: int) -> float:
        encoder = tok.backend_tokenizer
        return timed(lambda: encoder.encode_batch_fast(texts, add_special_tokens=False))(steps)

    def pack(steps: int) -> float:
        return timed(lambda: [*tokenizer.pack(texts, tok, LENGTH)])(steps)

    works.append(
        Work(
            "tokenise and pack, in memory",
            "encode_batch_fast alone",
            "MB/s",
            megabytes,
            1,
            pack,
            encode,
            0.85,
        )
    )
    return works


def show(row: dict[str, object]) -> str:
    """One row of the table, aligned."""
    goal = f"{row['goal']:.2f}" if row["goal"] else "-"
    return (
        f"{row['work']:<41}{row['reference']:<29}{row['ours']:>10,.1f}{row['theirs']:>10,.1f} "
        f"{row['unit']:<11}{row['ratio']:>6.2f}x ({row['ratio_low']:.2f} to "
        f"{row['ratio_high']:.2f})  goal {goal}"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/; else embedded")
    parser.add_argument("--size", default="paper", help="row of models.SIZES")
    parser.add_argument("--pairs", type=int, default=5, help="timings of either side")
    parser.add_argument("--batch", type=int, default=16, help="segments per pre-training step")
    parser.add_argument("--steps", type=int, default=2, help="steps in one timing")
    parser.add_argument("--rows", type=int, default=256, help="examples of a fine-tuning epoch")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    options = parser.parse_args()
    training.begin(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works = pretraining(options.size, options.batch, options.steps, folder)
        works += finetuning(options.size, options.data, 32, options.rows, folder)
        for work in works:
            rows.append(compare(work, options.pairs))
            print(show(rows[-1]), flush=True)
    files.write_text(
        config.resolve(options.out),
        json.dumps(
            {
                "hardware": training.hardware(options.threads),
                "versions": training.versions(),
                "size": options.size,
                "length": LENGTH,
                "batch": options.batch,
                "rows": rows,
            },
            indent=2,
        )
        + "\n",
    )
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    config.run_main(main)
