"""Try every method on every family of tiny models and write the support matrix: `python scripts/support_matrix`."""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import torch
from entries import FAMILIES, entries
from table import write_readme
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar
from trials import try_method

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "ift" / "models" / "support.json"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", nargs="*", help="only these (default: all); others are kept as they are")
    parser.add_argument("--families", nargs="*", default=FAMILIES, help="only these")
    parser.add_argument("--output", type=Path, default=FILE, help="the file (default: the one that ift reads)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(1)
    started = time.monotonic()
    wanted = {name: make for name, make in entries().items() if not options.entries or name in options.entries}
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    pairs = [(name, family) for name in wanted for family in options.families]
    for name, family in tqdm(pairs, "trials", disable=not sys.stderr.isatty()):
        kept.setdefault(name, {})[family] = try_method(wanted[name], family)
        print(name, family, {key: value for key, value in kept[name][family].items() if value != "yes"}, flush=True)
    print(f"{len(pairs)} trials in {time.monotonic() - started:.0f} s")
    ordered = {
        name: {family: kept[name][family] for family in FAMILIES if family in kept[name]}
        for name in entries()
        if name in kept
    }
    text = json.dumps(ordered, indent=1, ensure_ascii=False)
    options.output.write_text(text + "\n", encoding="utf-8")
    if options.output == FILE:
        write_readme(ROOT / "README.md", json.loads(text))


if __name__ == "__main__":
    main()
