"""Runs to predict with, prompts to answer, and a way to run `ift predict` in this process."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import CHINESE, WORDS

from ift.cli import main


def run_settings(folder: Path, base: Path, rows: Path, **model: Any) -> dict[str, Any]:
    adapter = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}
    return {
        "run_dir": str(folder),
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 6, "enable_progress_bar": False},
        "model": {
            "base": str(base),
            "adapter": adapter,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
            **model,
        },
        "data": {
            "sources": [{"path": str(rows), "layout": "alpaca"}],
            "max_length": 256,
            "global_batch_size": 8,
            "micro_batch_tokens": 1024,
            "cache_dir": str(folder.parent / "cache"),
        },
    }


def fit(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config", str(path)]) == 0
    return folder


def write_prompts(path: Path, prompts: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in prompts), encoding="utf-8")
    return path


def make_prompts(number: int) -> list[dict[str, Any]]:
    """Prompts of very different lengths in the order of no sorting; every third is to be ranked."""
    prompts = []
    for i in range(number):
        text = " ".join(WORDS[(i * 7 + k) % 10] for k in range(1 + (i * 5) % 11)) + CHINESE[i % 10] * (i % 3)
        prompt: dict[str, Any] = {
            "id": f"item-{(i * 37) % 101:03d}-{i}",
            "messages": [{"role": "user", "content": f"Repeat: {text}"}],
            "reference": text,
            "meta": {"category": f"c{i % 2}", "深": [i]},
        }
        if i % 3 == 2:
            prompt["options"] = [WORDS[i % 10], "river stone", CHINESE[i % 10], " A"][: 2 + i % 3]
        prompts.append(prompt)
    return prompts


@dataclass(frozen=True)
class Predicting:
    """Runs `ift predict` in this process."""

    capture: pytest.CaptureFixture[str]
    arguments: list[str]

    def __call__(self, output: Path, *more: object) -> tuple[int, str]:
        """Return exit code and what was said."""
        self.capture.readouterr()
        code = main(["predict", *self.arguments, "--output_dir", str(output), *map(str, more)])
        captured = self.capture.readouterr()
        return code, captured.out + captured.err

    def lines(self, output: Path, *more: object) -> list[dict[str, Any]]:
        """Return the predictions of a run that must succeed."""
        code, said = self(output, *more)
        assert code == 0, said
        return read(output)

    def refused(self, output: Path, *more: object) -> str:
        """Return the message of a run that must fail."""
        code, said = self(output, *more)
        assert code == 2 and "Traceback" not in said, said
        message = said[said.index("error: ") :]
        assert len(message.splitlines()) <= 5
        return message


def read(output: Path) -> list[dict[str, Any]]:
    text = (output / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
