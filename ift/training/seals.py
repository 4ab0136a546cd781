"""Seals: a sha256 over a checkpoint's bytes, kept in the comment that ends every zip file.

`torch.load` does not compare a tensor with the checksum beside it: with one bit of a checkpoint turned over, two times
of three it returns other weights and says nothing. So what was written is hashed on its way, and compared when read.
The seal tells damage and files of other programs; it is no signature, and who can write the folder can write seals.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ift.errors import UserError

_PREFIX = b"ift sha256 "
_COMMENT_BYTES = len(_PREFIX) + 64
_CHUNK_BYTES = 1 << 24


class SealedFile:
    """What `torch.save` writes to; hashes on the way.

    Args:
        file: empty, opened for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._end = file, hashlib.sha256(), b""
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Append bytes; the length of the zip's comment, its last two bytes, must wait for the seal."""
        view = memoryview(data).cast("B")
        if len(view) >= 2:
            self._put(self._end)
            self._put(view[:-2])
            self._end = bytes(view[-2:])
        else:
            end = self._end + bytes(view)
            self._put(end[:-2])
            self._end = end[-2:]
        return len(view)

    def _put(self, data: Any) -> None:
        # Raised in here, an error would be hidden by one of torch's own, which cannot end its file then. So it waits.
        if self._failure is not None:
            return
        try:
            self._hash.update(data)
            self._file.write(data)
        except OSError as error:
            self._failure = error

    def flush(self) -> None:
        """Do nothing; all is flushed with the seal."""

    def seal(self) -> None:
        """Write the seal as the comment of the zip file, flush all and wait for the disk.

        Raises:
            OSError: something could not be written, before or now.
        """
        if self._failure is not None:
            raise self._failure
        assert self._end == b"\0\0", "torch.save ended with something else than a zip file without a comment"
        comment = _PREFIX + self._hash.hexdigest().encode()
        self._file.write(_COMMENT_BYTES.to_bytes(2, "little") + comment)
        self._file.flush()
        os.fsync(self._file.fileno())


def write_sealed(value: Any, path: Path) -> None:
    """Write a file that is sealed and on the disk.

    Args:
        value: for `torch.save`.
        path: of the file.

    Raises:
        OSError: it could not be written.
    """
    with path.open("wb") as file:
        sealed: Any = SealedFile(file)
        torch.save(value, sealed)
        sealed.seal()


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk.

    Raises:
        OSError: the folder is gone, or could not be written.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_seal(key: str, path: Path) -> None:
    """Refuse a file that is not byte for byte what was sealed.

    Args:
        key: the configuration key that named the file.
        path: of the file.

    Raises:
        UserError: there is no seal, or it is of other bytes.
    """
    if path.is_dir():
        raise UserError(f"{key}: '{path}' is a folder, and a checkpoint of this run is a file.")
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(max(0, size - _COMMENT_BYTES))
        comment = file.read()
        if not comment.startswith(_PREFIX):
            raise UserError(
                f"{key}: '{path}' was not written by ift fit, or its end is missing: it lacks the checksum that ends "
                "every checkpoint. Take another checkpoint."
            )
        file.seek(0)
        left = size - _COMMENT_BYTES - 2
        while left > 0:
            chunk = file.read(min(_CHUNK_BYTES, left))
            left -= len(chunk)
            digest.update(chunk)
        length = file.read(2)
    if comment[len(_PREFIX) :] != digest.hexdigest().encode() or length != _COMMENT_BYTES.to_bytes(2, "little"):
        raise damaged(key, path)


def damaged(key: str, path: Path) -> UserError:
    """Return what to raise for a file whose bytes are others than were written."""
    return UserError(
        f"{key}: '{path}' is damaged or was changed: its bytes are not those that ift fit wrote (sha256). Take another "
        "checkpoint."
    )
