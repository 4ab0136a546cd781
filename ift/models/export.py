"""A finished run as a plain folder of transformers: merged, certified, with tokenizer, template and model card.

The folder is built beside its place and renamed when all of it is there and the certificate holds, so that a killed or
refused export leaves nothing that looks finished.
"""

import gc
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ift.artifacts import check_new_folder, write_json
from ift.data.chat_template_export import PromptFormat
from ift.data.encoding import Encoder
from ift.errors import UserError
from ift.models.certificate import Certificate, Comparison, Logits, PromptSample, compare
from ift.models.encoder_decoder import is_encoder_decoder
from ift.models.loading import Dtype, family_of, read_config
from ift.models.merging import load_trained, merge, write_model
from ift.models.model_card import CardFacts, model_card
from ift.models.trained_run import TrainedRun

Weights = Literal["original", "dequantized"]


@dataclass(frozen=True)
class ExportSettings:
    """How a run is exported."""

    output: Path
    """New folder."""
    dtype: Dtype
    """Of the written weights."""
    source_dtype: Dtype
    """Of the base model's files; weights are loaded in it, so that nothing is rounded before it must be."""
    weights: Weights = "original"
    """Into which weights an adapter of a quantized base model is merged."""
    shard_size: str = "5GB"
    """Largest file of weights."""
    max_changed: float = 0.02
    """Largest share of changed greedy tokens."""
    accept_drift: bool = False
    """Whether to keep what is beyond a limit, and say so in the model card."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a run to compare on."""

    samples: Sequence[PromptSample]
    origin: str
    """Where they are from."""


@dataclass(frozen=True)
class Measured:
    """Logits of a model, with what to call it."""

    logits: Logits
    name: str
    dtype: str


class Exporter:
    """Exports one run.

    Args:
        run: checked by `open_trained`.
        settings: how.
        encoder: tokenizer and template of the run.
        prompts: to compare on.
        report: told what is being done.
    """

    def __init__(
        self,
        run: TrainedRun,
        settings: ExportSettings,
        *,
        encoder: Encoder,
        prompts: PromptSet,
        report: Callable[[str], None],
    ) -> None:
        self._run, self._settings, self._encoder = run, settings, encoder
        self._prompts, self._report = prompts, report
        self._work = settings.output.with_name(f".{settings.output.name}.unfinished")
        self._building = self._work / "model"

    def export(self, prompt: PromptFormat, *, config: Mapping[str, Any]) -> Certificate:
        """Write the folder and return its certificate.

        Args:
            prompt: how prompts are written without us.
            config: the run's resolved configuration.

        Raises:
            UserError: the folder exists, PEFT cannot merge, or the merge changes more than it may.
        """
        check_new_folder("--output", self._settings.output)
        shutil.rmtree(self._work, ignore_errors=True)  # left by a killed export to the same place
        self._work.mkdir(parents=True)
        try:
            certificate = self._write_and_certify()
            self._report(certificate.table())
            if self._run.quantization is not None:
                self._report(self._nearest(certificate))
            if certificate.problems() and not self._settings.accept_drift:
                raise UserError("--output: nothing is written. " + " ".join(certificate.problems()) + self._repair())
            self._write_beside(prompt, certificate, config=config)
            os.rename(self._building, self._settings.output)
        finally:
            shutil.rmtree(self._work, ignore_errors=True)
        return certificate

    def _write_and_certify(self) -> Certificate:
        run, dtype = self._run, self._settings.dtype
        quantized = run.quantization is not None
        trained = other = None
        if run.quantization is not None:
            trained = self._measure(f"{run.quantization.scheme} base + adapter", run.dtype, quantized=True)
            rest: Weights = "original" if self._settings.weights == "dequantized" else "dequantized"
            other = self._measure(f"merge into {rest} weights (not written)", dtype, weights=rest)
        elif run.dtype not in (dtype, self._settings.source_dtype):
            trained = self._measure(self._name, run.dtype)
        beside = self._measure(self._name, dtype) if dtype not in ("float32", self._settings.source_dtype) else None
        model = self._load(self._settings.source_dtype, self._settings.weights)
        exact = self._logits(model, self._name, "float32")
        if not quantized and trained is None:
            trained = self._logits(model, self._name, run.dtype) if run.dtype != "float32" else exact
        if dtype != "float32" and beside is None:
            same = trained is not None and not quantized and run.dtype == dtype
            beside = trained if same else self._logits(model, self._name, dtype)
        model = self._merge(model)
        rounded = self._logits(model, "merged weights", "float32") if dtype != "float32" else None
        write_model(
            model,
            self._building,
            shard_size=self._settings.shard_size,
            stop_token_ids=self._encoder.stop_token_ids,
            pad_token_id=self._encoder.pad_token_id,
        )
        del model
        gc.collect()
        assert trained is not None
        return self._certificate(exact, beside, trained, other=other, rounded=rounded)

    def _certificate(
        self,
        exact: Measured,
        beside: Measured | None,
        trained: Measured,
        *,
        other: Measured | None,
        rounded: Measured | None,
    ) -> Certificate:
        """Load what was written, and compare it with what was measured before."""
        from ift.models.loading import load_base_model

        dtype = self._settings.dtype
        self._report("comparing the written model")
        model = load_base_model("--output", str(self._building), dtype)
        in_float32 = self._logits(model, "written model", "float32")
        written = self._logits(model, "written model", dtype) if dtype != "float32" else in_float32
        del model
        pairs = [(exact, in_float32)]
        yardstick, strict = None, 0
        low = beside if beside is not None else trained if self._run.quantization is None else exact
        if beside is not None:
            pairs.append((beside, written))
        if low.dtype != "float32":
            yardstick = len(pairs)
            pairs.append((exact, low))
        if trained is not beside and trained is not exact:
            pairs.append((trained, written))
        # The last of them: in the dtype that is written, and of what was trained where that is something else.
        deployed = max(number for number, (_, candidate) in enumerate(pairs) if candidate in (in_float32, written))
        if rounded is not None:
            strict = len(pairs)
            pairs.append((rounded, in_float32))
        if other is not None:
            pairs.append((trained, other))
        return Certificate(
            num_prompts=len(self._prompts.samples),
            prompts=self._prompts.origin,
            comparisons=tuple(_compared(*pair) for pair in pairs),
            dtype=dtype,
            strict=strict,
            deployed=deployed,
            yardstick=yardstick,
            max_changed=self._settings.max_changed,
        )

    @property
    def _name(self) -> str:
        """What to call the model that is written, before it is merged."""
        if self._run.adapter is None:
            return "trained model"
        return f"{self._settings.weights if self._run.quantization is not None else ''} base + adapter".strip()

    def _load(self, dtype: Dtype, weights: Weights) -> Any:
        self._report(f"loading {self._run.base} in {dtype}")
        dequantize = self._run.quantization is not None and weights == "dequantized"
        quantization = self._run.quantization if dequantize else None
        return load_trained("RUN", self._run, dtype, quantization=quantization, dequantize=dequantize)

    def _measure(self, name: str, dtype: Dtype, *, weights: Weights | None = None, quantized: bool = False) -> Measured:
        """Load a model only to measure it."""
        if quantized:
            self._report(f"loading {self._run.base} as it was trained")
            model = load_trained("RUN", self._run, dtype, quantization=self._run.quantization)
        else:
            model = self._load(dtype, weights or self._settings.weights)
        measured = self._logits(model, name, dtype)
        del model
        gc.collect()  # a model of PEFT refers to itself
        return measured

    def _logits(self, model: Any, name: str, dtype: str) -> Measured:
        folder = self._work / "logits" / str(len(list(self._work.glob("logits/*"))))
        logits = Logits(folder, model, self._prompts.samples, float32=dtype == "float32")
        return Measured(logits, name, dtype)

    def _merge(self, model: Any) -> Any:
        self._report("merging")
        return merge("RUN", model, self._settings.dtype)

    def _write_beside(self, prompt: PromptFormat, certificate: Certificate, *, config: Mapping[str, Any]) -> None:
        """Write tokenizer, template, certificate and model card."""
        tokenizer = self._encoder.tokenizer
        tokenizer.chat_template = prompt.chat_template
        tokenizer.save_pretrained(str(self._building))
        shutil.copyfile(self._run.folder.template, self._building / "template.json")
        described = {
            "base": self._run.manifest["base"]["fingerprint"],
            "trained": dict(self._run.manifest["exported"]),
            "weights": self._settings.weights if self._run.quantization is not None else None,
            **certificate.describe(),
        }
        write_json(self._building / "certificate.json", json.loads(json.dumps(described)))
        facts = CardFacts(
            title=self._settings.output.name,
            base_name=str(self._run.manifest["base"]["name"]),
            config=config,
            dtype=self._settings.dtype,
            certificate=certificate,
            prompt=prompt,
            written=self._written(),
            encoder_decoder=is_encoder_decoder(read_config(self._run.base)),
            own_class=family_of(str(self._building)) is not None,
        )
        (self._building / "README.md").write_text(model_card(self._run, facts), encoding="utf-8")
        for path in self._building.glob("*.safetensors"):  # written for their owner alone
            path.chmod((self._building / "config.json").stat().st_mode)

    def _written(self) -> str:
        if self._run.adapter is None:
            return f"A fine-tuned model, all weights in one, in {self._settings.dtype}."
        into = {"original": "the original weights of its base model", "dequantized": "the dequantized weights of its "}
        where = into["original"]
        if self._run.quantization is not None and self._settings.weights == "dequantized":
            where = f"{into['dequantized']}base model as {self._run.quantization.scheme} held them in training"
        return f"A fine-tuned model: an adapter merged into {where}, in {self._settings.dtype}. It needs no PEFT."

    def _nearest(self, certificate: Certificate) -> str:
        """Say which of the two merges of a quantized run is nearer to what was trained."""
        written, other = certificate.comparisons[certificate.deployed], certificate.comparisons[-1]
        rest = "original" if self._settings.weights == "dequantized" else "dequantized"
        near, far, name = (
            (written, other, self._settings.weights) if written.mean_kl <= other.mean_kl else (other, written, rest)
        )
        return (
            f"nearest to what was trained: the merge into {name} weights (mean KL {near.mean_kl:.1e}, the other "
            f"{far.mean_kl:.1e})"
        )

    def _repair(self) -> str:
        choices = ["pass --accept_drift to keep it with these numbers in its model card"]
        if self._run.quantization is not None and self._settings.weights == "original":
            choices.insert(0, "merge into what was trained on with --base dequantized")
        elif self._settings.dtype != "float32":
            choices.insert(0, "write --dtype float32")
        return f" Either {', or '.join(choices)}."


def _compared(reference: Measured, candidate: Measured) -> Comparison:
    names = (f"{reference.name} ({reference.dtype})", candidate.name)
    return compare(reference.logits, candidate.logits, names=names, dtype=candidate.dtype)
