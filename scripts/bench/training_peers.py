"""Other trainers for `training.py`, where they are installed, on the same tokenized examples in the same order.

A peer is a function of folder, method, number of steps and `tell`, which it calls with the mean loss and the supervised
tokens of every finished step; add it to PEERS, with the packages it needs. The tokens are counted in the batches that
the trainer's model gets, so that an example left out, cut or taken in another order is noticed.

Written for TRL 1.16.0, which runs beside the packages of ift, and LLaMA-Factory 0.9.5, which needs an environment of
its own (`--python`): it refuses transformers after 5.6.0, datasets after 4.0.0, PEFT after 0.20.0 and TRL after
0.24.0. It imports torchaudio whatever it trains on; for texts, one without its compiled library will do.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from training_work import EXAMPLES_PER_STEP, MAX_LENGTH

Tell = Callable[[float, int], None]
Examples = list[dict[str, list[int]]]
ROW = (MAX_LENGTH // 8 + 1) * 8
"""Slots of a row that LLaMA-Factory packs, one more than its `cutoff_len`. A multiple of 8, as its collator pads ids to
one, but not positions."""


def load_steps(folder: Path, steps: int) -> list[Examples]:
    """Return the examples of every step."""
    import torch

    work = torch.load(folder / "steps.pt")[:steps]
    return [[{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in step] for step in work]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer, with a token to pad with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder / "base"), pad_token="<|end|>")


def load_model(folder: Path) -> Any:
    """Return the base model."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder / "base"), dtype=torch.float32)


def lora() -> Any:
    """Return the adapter's configuration."""
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])


def shared_arguments(folder: Path, steps: int) -> dict[str, Any]:
    """Return the training arguments of all that are built on transformers' Trainer."""
    return {
        "output_dir": tempfile.mkdtemp(dir=folder),
        "per_device_train_batch_size": EXAMPLES_PER_STEP,
        "train_sampling_strategy": "sequential",
        "max_steps": steps,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def telling(trainer: Any, tell: Tell) -> Any:
    """Return a class of trainer that counts what it trains on, and tells every step that it logs."""

    class Telling(trainer):  # type: ignore[misc]
        counted = 0

        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            self.counted += int((inputs["labels"][:, 1:] >= 0).sum())
            return super().compute_loss(model, inputs, *arguments, **options)

        def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
            if "loss" in logs:
                tell(float(logs["loss"]), self.counted)
                self.counted = 0
            super().log(logs, *arguments, **options)

    return Telling


def transformers_trainer(folder: Path, method: str, steps: int, tell: Tell) -> None:
    """Train with transformers' Trainer and its padding collator, LoRA by PEFT."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model = load_model(folder)
    if method == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, lora())
    arguments: dict[str, Any] = shared_arguments(folder, steps) | {"report_to": []}
    collator = DataCollatorForSeq2Seq(load_tokenizer(folder), padding=True)
    examples = [one for step in load_steps(folder, steps) for one in step]
    telling(Trainer, tell)(model, TrainingArguments(**arguments), collator, examples).train()


def trl(folder: Path, method: str, steps: int, tell: Tell) -> None:
    """Train with TRL's SFTTrainer, its head and loss fused, on a dataset that is tokenized already.

    Its defaults for GPUs, bfloat16 and gradient checkpointing, are off. Padding-free lays the examples of a step in one
    row; its packing does so too, after it chose other examples for each step, so that the two are one here. Padded
    batches are slower, as on a processor the head is computed where there is padding, too.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments: dict[str, Any] = shared_arguments(folder, steps) | {"report_to": []}
    arguments |= {"padding_free": True, "max_length": None, "gradient_checkpointing": False}
    telling(SFTTrainer, tell)(
        model=load_model(folder),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list([one for step in load_steps(folder, steps) for one in step]),
        processing_class=load_tokenizer(folder),
        peft_config=lora() if method == "lora" else None,
    ).train()


def llamafactory_rows(step: Examples, pad: int, *, packed: bool) -> list[dict[str, Any]]:
    """Return the rows of a step as LLaMA-Factory's own preparation makes them of its examples."""
    from types import SimpleNamespace

    from llamafactory.data.processor import PackedSupervisedDatasetProcessor, SupervisedDatasetProcessor

    class Prepared(PackedSupervisedDatasetProcessor if packed else SupervisedDatasetProcessor):  # type: ignore[misc]
        def _encode_data_example(self, prompt: Any, **others: Any) -> tuple[list[int], list[int]]:
            return prompt[0]["input_ids"], prompt[0]["labels"]

    settings = SimpleNamespace(cutoff_len=ROW - 1, neat_packing=packed)
    processor = Prepared(None, SimpleNamespace(pad_token_id=pad), None, settings)
    unused = ("_system", "_tools", "_images", "_videos", "_audios")
    columns: dict[str, list[Any]] = {name: [None] * len(step) for name in unused}
    columns |= {"_prompt": [[one] for one in step], "_response": [[None] for _ in step]}
    made = processor.preprocess_dataset(columns)
    return [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]


def llamafactory(folder: Path, method: str, steps: int, tell: Tell, *, packed: bool = True) -> None:
    """Train with LLaMA-Factory's `run_exp`, what its command line runs, with `neat_packing`.

    Its alpaca template makes other tokens, so the examples are given to its own preparation tokenized, step by step,
    and saved where `tokenized_path` finds them. It packs a step's 8 examples into rows of `cutoff_len`; as their number
    differs, the loader takes the rows of a step together, instead of a fixed number of rows with other examples.
    """
    import torch
    from datasets import Dataset, DatasetDict
    from llamafactory.train.sft import workflow
    from llamafactory.train.tuner import run_exp

    pad = load_tokenizer(folder).pad_token_id
    work = [llamafactory_rows(step, pad, packed=packed) for step in load_steps(folder, steps)]
    path = tempfile.mkdtemp(dir=folder)
    DatasetDict({"train": Dataset.from_list([row for rows in work for row in rows])}).save_to_disk(path)
    batches = [list(range(end - len(rows), end)) for end, rows in zip(accumulate(map(len, work)), work, strict=True)]

    class ByStep(telling(workflow.CustomSeq2SeqTrainer, tell)):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            options: Any = {"batch_sampler": batches, "collate_fn": self.data_collator}
            return torch.utils.data.DataLoader(self.train_dataset, **options)

    workflow.CustomSeq2SeqTrainer = ByStep
    arguments = shared_arguments(folder, steps) | {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(folder / "base"),
        "finetuning_type": method,
        "template": "empty",
        "dataset": "steps",
        "tokenized_path": path,
        "cutoff_len": ROW - 1,
        "neat_packing": packed,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "report_to": "none",
    }
    if method == "lora":
        arguments |= {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_target": "q_proj,v_proj"}
    run_exp(arguments)


def llamafactory_padded(folder: Path, method: str, steps: int, tell: Tell) -> None:
    """Train with LLaMA-Factory on padded batches."""
    llamafactory(folder, method, steps, tell, packed=False)


PEERS: dict[str, tuple[Callable[[Path, str, int, Tell], None], tuple[str, ...]]] = {
    "transformers": (transformers_trainer, ("transformers", "accelerate", "peft")),
    "trl": (trl, ("trl", "datasets", "peft")),
    "llamafactory": (llamafactory, ("llamafactory", "datasets", "peft")),
    "llamafactory_padded": (llamafactory_padded, ("llamafactory", "datasets", "peft")),
}


def installed(pythons: Mapping[str, str]) -> list[str]:
    """Return the peers whose packages are here, or where the interpreter named for a peer finds them.

    Args:
        pythons: interpreters of their own, by peer.
    """
    found = "import sys, importlib.util as u; sys.exit(not all(u.find_spec(one) for one in sys.argv[1:]))"
    kept = []
    for name, (_, needed) in PEERS.items():
        command = [pythons.get(name, sys.executable), "-c", found, *needed]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            kept.append(name)
    return kept
