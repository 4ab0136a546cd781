"""Make an untrained base model in transformers' layout: random weights from a config, and a tokenizer beside them."""

import argparse
import json
import sys
from pathlib import Path

from ift.errors import UserError


def make_base(config_file: Path, tokenizer_folder: Path, output: Path, *, seed: int) -> int:
    """Write the folder and return the number of parameters.

    Args:
        config_file: JSON in the layout of transformers' `config.json`, without `vocab_size`.
        tokenizer_folder: of a trained tokenizer; decides the size of the vocabulary.
        output: new folder.
        seed: of the random weights.

    Raises:
        UserError: the folder exists.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if output.exists():
        raise UserError(f"--output: '{output}' exists, and nothing is overwritten. Give another folder.")
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    settings = json.loads(config_file.read_text(encoding="utf-8"))
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(**settings, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **special)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> int:
    """Make the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        parameters = make_base(options.config, options.tokenizer, options.output, seed=options.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {parameters:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
