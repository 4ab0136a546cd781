"""Compressed content read as it comes; where it is damaged, every byte before the damage is given first."""

import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

_MOST_BYTES = 1 << 16
"""Asked for at once; bounds what is read byte by byte before the place of a damage."""
_GZIP_FORMAT = 31
"""zlib's `wbits` for a gzip header and trailer around the largest window."""


class DamagedFileError(Exception):
    """A file that breaks off or cannot be decompressed; what was read before is good."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def decompressed(open_raw: Callable[[], BinaryIO], compression: str) -> BinaryIO:
    """Return the content of a compressed file.

    Args:
        open_raw: opens the compressed bytes; a second time where they are damaged.
        compression: `gzip` or `zstd`.

    Raises:
        DamagedFileError: in reading, behind the last byte before the damage.
    """
    return cast(BinaryIO, io.BufferedReader(_Reader(open_raw, compression), _MOST_BYTES))


class _Reader(io.RawIOBase):
    """After an error, what could have been read before it is read again in steps of one byte."""

    def __init__(self, open_raw: Callable[[], BinaryIO], compression: str) -> None:
        self._open_raw, self._compression = open_raw, compression
        self._damage = ""
        self._given, self._step = 0, _MOST_BYTES
        self._start()

    def _start(self) -> None:
        self._raw = self._open_raw()
        self._stream: _Stream = _Gunzip(self._raw) if self._compression == "gzip" else _zstd(self._raw)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes undamaged, and raise at the damage itself."""
        data = b""
        while len(data) < min(len(buffer), _MOST_BYTES):
            piece = self._piece(min(self._step, len(buffer)))
            data += piece
            if len(piece) != 1 or self._step > 1:
                break
        if not data and self._damage:
            raise DamagedFileError(f"the {self._compression} file is damaged or breaks off ({self._damage})")
        buffer[: len(data)] = data
        self._given += len(data)
        return len(data)

    def _piece(self, size: int) -> bytes:
        if self._damage:
            return b""
        try:
            return self._stream.read(size)
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # not the content but the disk or the network
            if self._step == 1:
                self._damage = " ".join(str(error).split())[:200]
                return b""
        self._raw.close()
        self._start()
        self._step = 1
        self._pass_over(self._given)
        return self._piece(1)

    def _pass_over(self, size: int) -> None:
        while size and (piece := self._stream.read(min(size, _MOST_BYTES))):
            size -= len(piece)


class _Gunzip:
    """Members of a gzip file one after the other; unlike the gzip module it holds no bytes back before an error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""
        self._member: Any = None

    def read(self, size: int) -> bytes:
        """Return some bytes, at most `size`; none at the end."""
        while True:
            if self._member is None or self._member.eof:
                self._rest = self._next_member()
                if not self._rest and self._member is not None:
                    return b""
                self._member = zlib.decompressobj(_GZIP_FORMAT)
            data = self._rest or self._file.read(_MOST_BYTES)
            if not data:
                raise EOFError("its end is missing")
            found: bytes = self._member.decompress(data, size)
            self._rest = self._member.unconsumed_tail
            if found:
                return found

    def _next_member(self) -> bytes:
        """Return bytes from the beginning of the next member on; zeros between members are padding."""
        rest: bytes = self._member.unused_data if self._member is not None else b""
        while not (rest := rest.lstrip(b"\0")) and (more := self._file.read(_MOST_BYTES)):
            rest = more
        return rest


def _zstd(file: BinaryIO) -> _Stream:
    import pyarrow as pa

    return cast(_Stream, pa.CompressedInputStream(pa.PythonFile(file), "zstd"))
