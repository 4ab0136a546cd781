"""Other trainers for `training.py`, where they are installed, on the same tokenized examples in the same order.

A peer is a function of folder, method, number of steps and `tell`, which it calls with the mean loss and the supervised
tokens of every finished step; add it to PEERS, with the packages it needs.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Tell = Callable[[float, int], None]


def transformers_trainer(folder: Path, method: str, steps: int, tell: Tell) -> None:
    """Train with transformers' Trainer and its padding collator, LoRA by PEFT."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    model = AutoModelForCausalLM.from_pretrained(str(folder / "base"), dtype=torch.float32)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    work = torch.load(folder / "steps.pt")[:steps]
    examples = [{"input_ids": ids.tolist(), "labels": labels.tolist()} for step in work for ids, labels in step]
    tokens = [sum(int((labels[1:] >= 0).sum()) for _, labels in step) for step in work]
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "base"), pad_token="<|end|>")

    class Told(TrainerCallback):  # type: ignore[misc]
        """Tells what is logged of every step."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
            """Tell one step."""
            if "loss" in logs:
                tell(float(logs["loss"]), tokens[state.global_step - 1])

    class InOrder(Trainer):  # type: ignore[misc]
        """Takes the examples as they come."""

        def _get_train_sampler(self, *arguments: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = Arguments(
        output_dir=str(folder / "transformers_trainer"),
        per_device_train_batch_size=len(work[0]),
        max_steps=steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    data: Any = examples
    InOrder(model, arguments, collator, data, callbacks=[Told()]).train()


PEERS: dict[str, tuple[Callable[[Path, str, int, Tell], None], tuple[str, ...]]] = {
    "transformers": (transformers_trainer, ("transformers", "accelerate", "peft")),
}


def installed() -> list[str]:
    """Return the peers whose packages are here."""
    return [name for name, (_, needed) in PEERS.items() if all(find_spec(one) for one in needed)]
