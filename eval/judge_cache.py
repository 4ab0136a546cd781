"""Replies by what was asked, one JSON file each, so that no reply is paid for twice and tables rebuild offline.

The key is a hash over model, messages and sampling settings, not over the address: a reply stays known when a proxy or
another host serves the same model. The same question asked twice therefore has the same reply; to sample several, give
each its own `seed`.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from eval.judge_endpoint import Endpoint, Reply
from ift.errors import UserError


def reply_key(endpoint: Endpoint, messages: Sequence[Mapping[str, str]]) -> str:
    """Return the hash of all that decides a reply."""
    text = json.dumps(endpoint.body(messages), ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """A folder of replies."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> Reply | None:
        """Return the reply of that key, where there is one.

        Raises:
            UserError: its file is damaged.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8"))["reply"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"--cache: {path} holds no reply. Remove that file to ask again.") from None

    def put(self, key: str, reply: Reply, *, endpoint: Endpoint, messages: Sequence[Mapping[str, str]]) -> None:
        """Keep a reply; it is on disk, whole or not at all, when this returns."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        value = {"asked": endpoint.body(messages), "reply": asdict(reply)}
        temporary = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}.tmp")
        # Half of a surrogate pair, which UTF-8 cannot say, is written as JSON's escape of it.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"
