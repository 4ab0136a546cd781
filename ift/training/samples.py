"""Sample responses during validation, as text in TensorBoard."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ift.errors import UserError
from ift.inference.generation import Decoding, generate
from ift.training.engines import engine_of


class SampleResponses(Callback):
    """Answers the first validation prompts after each validation and logs prompt, response and reference.

    Args:
        num_samples: how many prompts; 0 for none.
        max_new_tokens: longest response, in tokens.
    """

    def __init__(self, num_samples: int = 4, max_new_tokens: int = 64) -> None:
        if num_samples < 0:
            raise UserError(f"samples.num_samples: {num_samples} is below 0. Set 0 for none.")
        if max_new_tokens < 1:
            raise UserError(
                f"samples.max_new_tokens: {max_new_tokens} is below 1. Set num_samples to 0 for no samples."
            )
        self.num_samples, self.max_new_tokens = num_samples, max_new_tokens

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate greedily and write the texts from the first rank; the others generate only where they must."""
        experiment: Any = getattr(trainer.logger, "experiment", None)
        wanted = self.num_samples and trainer.state.fn == "fit" and pl_module.validation_result is not None
        wanted = bool(wanted and trainer.is_global_zero and hasattr(experiment, "add_text"))
        engine = engine_of(pl_module)
        if not (trainer.strategy.broadcast(wanted) if engine.in_step else wanted):
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        encoder = datamodule.encoder
        pairs = datamodule.validation_prompts(self.num_samples)
        if not pairs:  # plain text without begin-of-text has no prompts
            return
        with engine.together(pl_module.model):
            responses = generate(
                pl_module.model,
                [prompt for prompt, _ in pairs],
                decoding=Decoding(max_new_tokens=self.max_new_tokens),
                stop_token_ids=encoder.stop_token_ids,
                pad_token_id=encoder.pad_token_id,
            )
        if not trainer.is_global_zero:
            return
        for number, ((prompt, reference), response) in enumerate(zip(pairs, responses, strict=True)):
            parts = {
                "prompt": encoder.tokenizer.decode(prompt, skip_special_tokens=False),
                "response": encoder.decode(response.ids) + ("" if response.finish_reason == "stop" else " […]"),
                "reference": encoder.decode(reference),
            }
            text = "\n\n".join(f"**{name}**\n\n{_as_code(part)}" for name, part in parts.items())
            experiment.add_text(f"samples/{number}", text, global_step=trainer.global_step)


def _as_code(text: str) -> str:
    """Indent, so that TensorBoard shows line breaks and leaves Markdown in the text alone."""
    return "\n".join("    " + line for line in text.split("\n"))
