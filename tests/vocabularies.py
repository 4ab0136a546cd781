"""Tokenizers with more tokens than another one: pairs of its tokens that follow one another in the rows of tests."""

import itertools
import json
from pathlib import Path
from typing import Any

from tiny import make_rows


def frequent_pairs(folder: Path, number: int) -> list[tuple[str, str]]:
    """Return pairs of tokens that follow one another in rows and are no token yet, most frequent first."""
    from collections import Counter

    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    special, known = set(tokenizer.all_special_tokens), tokenizer.get_vocab()
    counts: Counter[tuple[str, str]] = Counter()
    for row in make_rows(40):
        for text in row.values():
            tokens = tokenizer.tokenize(text)
            counts.update(itertools.pairwise(tokens))
    plain = [
        one for one in counts if not {*one} & special and "".join(one) not in known and "<0x" not in one[0] + one[1]
    ]
    plain.sort(key=lambda one: (-counts[one], one))
    distinct = dict.fromkeys("".join(one) for one in plain)
    first = {joined: next(one for one in plain if "".join(one) == joined) for joined in distinct}
    return list(first.values())[:number]


def larger_tokenizer(folder: Path, target: Path, number: int, *, special: tuple[str, ...] = ()) -> Path:
    """Write the tokenizer of a folder with so many more pieces and special tokens behind its last id."""
    from transformers import AutoTokenizer

    pairs = frequent_pairs(folder, number)
    AutoTokenizer.from_pretrained(str(folder)).save_pretrained(str(target))
    path = target / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    model = described["model"]
    start = max([*model["vocab"].values(), *(one["id"] for one in described["added_tokens"])]) + 1
    for index, pair in enumerate(pairs, start):
        model["vocab"]["".join(pair)] = index
    model["merges"] += [list(pair) for pair in pairs]
    path.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    if special:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(target))
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
        tokenizer.save_pretrained(str(target))
    return target
