"""`ift merge`: make a run's adapter part of its base model, as a plain folder of transformers with a certificate."""

import json
import logging
import re
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

from ift.artifacts import check_new_folder
from ift.commands.option_parser import OptionParser
from ift.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
"""Those of `ift.models.loading.Dtype`, which imports torch."""
SHARD_SIZE = re.compile(r"[1-9]\d*(KB|MB|GB)")


def parser() -> OptionParser:
    """Return the options."""
    result = OptionParser(
        "ift merge",
        "Merge the adapter of a run into its base model, or export the model of a run that trained base weights. The "
        "result is a plain folder of transformers (safetensors, tokenizer, generation settings, template, model card) "
        "that needs nothing of ift or PEFT. Every merge is certified: the trained model and the written one are "
        "compared on prompts of the run, and what differs by more than rounding is not kept.",
    )
    result.add_argument("run", metavar="RUN", help="the run folder; the run must be finished")
    result.add_argument("--output", required=True, metavar="DIR", help="new folder for the merged model")
    result.add_argument(
        "--dtype", choices=DTYPES, default=None, help="of the written weights (default: that of the base model's files)"
    )
    result.add_argument(
        "--base",
        choices=("original", "dequantized"),
        default=None,
        help="of a run on a quantized base model: merge into the weights as quantization held them in training "
        "(dequantized, the default: the model that was trained), or into the base model's original ones (another "
        "model, as the certificate shows)",
    )
    result.add_argument(
        "--shard_size", default="5GB", metavar="SIZE", help="largest file of weights, as 500MB or 5GB (default: 5GB)"
    )
    result.add_argument(
        "--prompts",
        default=None,
        metavar="FILE",
        help="compare on these prompts (rows as ift predict reads them, with a 'reference' where there is one) instead "
        "of the run's own: its validation examples, else its training examples",
    )
    result.add_argument("--num_prompts", type=int, default=16, metavar="N", help="prompts to compare on (default: 16)")
    result.add_argument(
        "--response_tokens",
        type=int,
        default=64,
        metavar="N",
        help="tokens of each response to compare on, from its first (default: 64)",
    )
    result.add_argument(
        "--max_changed",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="largest share of greedy tokens that may change, beyond those that the dtype changes without a merge "
        "(default: 0.02); float32 weights are moreover held to a logit gap of 1e-4 of the largest logit",
    )
    result.add_argument(
        "--accept_drift", action="store_true", help="keep a merge beyond these limits; the model card says so"
    )
    return result


def run(command: str, arguments: list[str]) -> None:
    """Run `merge`.

    Raises:
        UserError: an option, a run or a merge that is wrong.
    """
    options = parser().parse(arguments)
    _check(options)
    quiet()
    merge_run(options)


def _check(options: Namespace) -> None:
    for name in ("num_prompts", "response_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)} is less than 1.")
    if not 0 <= options.max_changed <= 1:
        raise UserError(f"--max_changed: {options.max_changed} is no share between 0 and 1.")
    if not SHARD_SIZE.fullmatch(options.shard_size):
        raise UserError(f"--shard_size: '{options.shard_size}' is no size. Write it as 500MB or 5GB.")


def quiet() -> None:
    """Hide the libraries' remarks that are none here."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="`loftq_config` specified")  # by no one: PEFT saves it as {}
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def merge_run(options: Namespace) -> None:
    """Check everything that can be checked without weights, then export.

    Args:
        options: as parsed.

    Raises:
        UserError: as `run`.
    """
    from ift.models.encoder_decoder import check_encoder_decoder
    from ift.models.export import Exporter, ExportSettings, Weights
    from ift.models.loading import read_config
    from ift.models.mergeability import check_mergeable
    from ift.models.merging import files_dtype
    from ift.models.quantization import is_quantized
    from ift.models.trained_run import open_trained
    from ift.models.vocabulary import enlarged_config

    output = Path(options.output).expanduser()
    check_new_folder("--output", output)
    trained = open_trained("RUN", options.run)
    if options.base is not None and trained.quantization is None:
        raise UserError(f"--base: '{options.run}' was not trained on a quantized base model. Leave it out.")
    config = read_config(trained.base)
    if trained.adapter is not None and trained.quantization is None and is_quantized(config, None):
        raise UserError(
            f"RUN: '{options.run}' was trained beside '{trained.base}', whose files hold quantized weights; a merge "
            "would round them again. Serve base model and adapter together (PEFT's PeftModel.from_pretrained), or "
            "train on the unquantized model with model.quantization."
        )
    if trained.adapter is not None:
        check_mergeable("RUN", trained.adapter, config=enlarged_config(config, trained.growth))
    weights: Weights = options.base or ("dequantized" if trained.quantization is not None else "original")
    in_files = files_dtype(trained.base)
    check_encoder_decoder("RUN", trained.base, config=config, dtype=options.dtype or in_files, dtype_key="--dtype")
    settings = ExportSettings(
        output=output,
        dtype=options.dtype or in_files,
        source_dtype=trained.dtype if weights == "dequantized" else in_files,
        weights=weights,
        shard_size=options.shard_size,
        max_changed=options.max_changed,
        accept_drift=options.accept_drift,
    )
    encoder, prompts, prompt_format = _prompts(options, trained)
    print(f"comparing on {len(prompts.samples)} prompts: {prompts.origin}", file=sys.stderr)
    exporter = Exporter(
        trained, settings, encoder=encoder, prompts=prompts, report=lambda text: print(text, file=sys.stderr)
    )
    exporter.export(prompt_format, config=_config(trained.folder.config))
    print(f"merged model: {output}")


def _prompts(options: Namespace, trained: Any) -> tuple[Any, Any, Any]:
    """Return the encoder, the prompts to compare on, and how prompts are written without us."""
    from ift.commands.merge_prompts import encoder_of, file_prompts, run_conversations, run_prompts
    from ift.data.chat_template_export import prompt_format

    folder = trained.folder
    described = json.loads(folder.template.read_text(encoding="utf-8"))
    template = "tokenizer" if "chat_template" in described else _template(described)
    template_options = described.get("options") or {}
    encoder = encoder_of(folder, template, template_options)
    if options.prompts is not None:
        prompts = file_prompts(
            options.prompts,
            run=folder,
            template=template,
            options=template_options,
            most_tokens=options.response_tokens,
        )
    else:
        prompts = run_prompts(
            folder, base=trained.base, number=options.num_prompts, most_tokens=options.response_tokens
        )
    return encoder, prompts, prompt_format(encoder, run_conversations(folder, base=trained.base))


def _template(described: dict[str, Any]) -> Any:
    from ift.data.templates import Template

    return Template(**described)


def _config(path: Path) -> dict[str, Any]:
    import yaml

    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config
