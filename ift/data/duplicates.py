"""Filters that leave out a conversation which an earlier one equals, exactly or nearly; the first one stays.

What was seen lies in a temporary database, so that memory stays flat for any number of conversations. Near duplicates
take about 1 KiB of disk and the text for each conversation that stays.
"""

import hashlib
import importlib.metadata
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ift.data.conversation import Conversation
from ift.data.temporary_database import TemporaryDatabase
from ift.data.text_windows import UNICODE_VERSION, Hashes, code_points, normalised, window_hashes
from ift.errors import UserError

if TYPE_CHECKING:
    from datasketch import MinHash

RECALL = 0.95
"""Least probability that a pair just as similar as the threshold is compared at all."""
_CHUNK_SHINGLES = 16_384  # bounds the matrix of shingles by permutations to 8 MiB, however long a text is


class ExactDuplicates:
    """Finds conversations that are equal to an earlier one, byte for byte.

    Equal means: the same system text and the same messages, each with the same role, text, context, thought and
    supervision. Identifier, source and meta do not count; no text is normalised (`NearDuplicates` does that).
    """

    name = "duplicate"

    def __init__(self) -> None:
        self._database = TemporaryDatabase()
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")

    def check(self, conversation: Conversation, place: str) -> str | None:
        """Return why the conversation is left out, or `None` where it is the first of its kind.

        Args:
            conversation: in the order of the sources.
            place: `file line N`, for the reason of those that equal it.
        """
        digest = conversation_digest(conversation)
        added = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, place)).rowcount
        if added:
            return None
        (first,) = self._database.execute("SELECT place FROM seen WHERE digest = ?", (digest,)).fetchone()
        return f"equal to {first}"

    def describe(self) -> dict[str, Any]:
        """Return all that decides the outcome."""
        return {"filter": self.name}


class NearDuplicates:
    """Finds conversations whose text is nearly that of an earlier one that stayed.

    The text is that of all messages (text and context; not the system text, which many conversations share and which
    would outweigh short ones), in NFKC, without upper case, white space collapsed. Two texts are compared by the
    Jaccard similarity of their sets of shingles: runs of `ngram` characters, the whole text where it is shorter.
    Characters and not words, because Chinese puts no blanks between words; five of them, which is about a word of
    English or two of Chinese.

    MinHash (Broder, "On the resemblance and containment of documents", 1997) with banding finds the candidates. Each
    is then compared by its true similarity, so no conversation is left out by an estimate; only a pair can be missed,
    and `recall` says how likely that is.
    Conversations of one row, such as the threads of a tree, are never compared with one another.

    Rows that differ in a short part only, behind a long instruction that all of them share, are near duplicates by this
    measure: look at what was removed, and raise the threshold where such rows are meant. Very many of them also take
    time, since each is compared with all that share the instruction.

    Args:
        threshold: least Jaccard similarity that counts as nearly equal, above 0, at most 1.
        num_permutations: of MinHash; more cost time and miss less just above the threshold.
        ngram: characters of a shingle.
        seed: of the permutations.

    Raises:
        UserError: a setting out of range, or the package `datasketch` is missing.
    """

    name = "near_duplicate"

    def __init__(self, threshold: float = 0.8, *, num_permutations: int = 128, ngram: int = 5, seed: int = 1) -> None:
        _check_range("threshold", threshold, 0 < threshold <= 1, "above 0 and at most 1")
        _check_range("num_permutations", num_permutations, 16 <= num_permutations <= 4096, "from 16 to 4096")
        _check_range("ngram", ngram, ngram >= 1, "1 or more")
        self.threshold, self.ngram, self.seed = threshold, ngram, seed
        self.num_permutations = num_permutations
        self.num_bands, self.band_rows = choose_bands(threshold, num_permutations)
        self._margin = 3 * math.sqrt(threshold * (1 - threshold) / num_permutations)
        self._number = 0
        self._empty_sketch = _empty_sketch(num_permutations, seed)
        self._database = TemporaryDatabase()
        # Two tables, because sketches are read by the thousand where many rows share a long instruction.
        for table in (
            "texts (id INTEGER PRIMARY KEY, place TEXT, text TEXT)",
            "sketches (id INTEGER PRIMARY KEY, num_shingles INTEGER, sketch BLOB)",
            "bands (band INTEGER, id INTEGER, PRIMARY KEY (band, id)) WITHOUT ROWID",
        ):
            self._database.execute(f"CREATE TABLE {table}")

    def check(self, conversation: Conversation, place: str) -> str | None:
        """Return why the conversation is left out, or `None`, and then later ones are compared with it.

        Args:
            conversation: in the order of the sources.
            place: `file line N`, for the reason of those that are like it.
        """
        text = comparable_text(conversation)
        shingles = shingle_hashes(text, self.ngram)
        sketch = self._sketch(shingles)
        bands = self._bands(sketch)
        for number in self._candidates(bands, sketch, len(shingles)):
            found = self._database.execute("SELECT place, text FROM texts WHERE id = ?", (number,))
            found_place, found_text = found.fetchone()
            similarity = jaccard(shingles, shingle_hashes(found_text, self.ngram))
            if similarity >= self.threshold and found_place != place:
                return f"Jaccard similarity {similarity:.3f} with {found_place}"
        self._add(place, text, (len(shingles), sketch.astype(np.uint8).tobytes()), bands)
        return None

    def recall(self, similarity: float) -> float:
        """Return the probability that a pair of this similarity is compared: 1 - (1 - s^rows)^bands."""
        return _recall(similarity, self.num_bands, self.band_rows)

    def describe(self) -> dict[str, Any]:
        """Return all that decides the outcome."""
        return {
            "filter": self.name,
            "threshold": self.threshold,
            "num_permutations": self.num_permutations,
            "ngram": self.ngram,
            "seed": self.seed,
            "datasketch": importlib.metadata.version("datasketch"),
            "unicode": UNICODE_VERSION,
        }

    def _sketch(self, shingles: Hashes) -> npt.NDArray[np.uint32]:
        """Return the MinHash of a set, `(num_permutations,)`."""
        sketch = self._empty_sketch.copy()
        short = (shingles >> np.uint64(32)).astype(np.uint32)
        for start in range(0, len(short), _CHUNK_SHINGLES):
            sketch.update_batch(short[start : start + _CHUNK_SHINGLES].tolist())
        values: npt.NDArray[np.uint32] = sketch.hashvalues.astype("<u4")
        return values

    def _bands(self, sketch: npt.NDArray[np.uint32]) -> list[int]:
        """Return one number for each band of the MinHash; texts that share one of them are candidates."""
        rows = sketch[: self.num_bands * self.band_rows].reshape(self.num_bands, self.band_rows)
        return [_band_number(band, row.tobytes()) for band, row in enumerate(rows)]

    def _candidates(self, bands: list[int], sketch: npt.NDArray[np.uint32], num_shingles: int) -> list[int]:
        """Return the numbers of the texts that share a band and may be similar enough, in their order.

        The similarity cannot exceed the quotient of the sizes. The share of equal values in two sketches estimates it;
        a text whose estimate lies three standard deviations below the threshold is not compared. Of each value, the
        table holds the low byte, by which one in 256 different values seems equal.
        """
        marks = ",".join("?" * len(bands))
        sizes = (math.floor(self.threshold * num_shingles), math.ceil(num_shingles / self.threshold))
        found = self._database.execute(
            f"SELECT id, sketch FROM sketches WHERE id IN (SELECT id FROM bands WHERE band IN ({marks})) "
            "AND num_shingles BETWEEN ? AND ? ORDER BY id",
            (*bands, *sizes),
        ).fetchall()
        if not found:
            return []
        numbers, sketches = zip(*found, strict=True)
        others = np.frombuffer(b"".join(sketches), dtype=np.uint8).reshape(len(found), -1)
        num_equal = np.count_nonzero(others == sketch.astype(np.uint8), axis=1)
        least = (self.threshold - self._margin) * self.num_permutations
        return [numbers[index] for index in np.flatnonzero(num_equal >= least)]

    def _add(self, place: str, text: str, sketch: tuple[int, bytes], bands: list[int]) -> None:
        """Let later conversations be compared with this one."""
        number = self._number
        self._database.execute("INSERT INTO texts VALUES (?, ?, ?)", (number, place, text))
        self._database.execute("INSERT INTO sketches VALUES (?, ?, ?)", (number, *sketch))
        self._database.execute_many("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in bands])
        self._number += 1


def conversation_digest(conversation: Conversation) -> bytes:
    """Return 16 bytes that two conversations share only where system text and messages are equal."""
    messages = [[m.role, m.text, m.context, m.thought, m.call, m.supervised] for m in conversation.messages]
    return hashlib.blake2b(json.dumps([conversation.system, messages]).encode(), digest_size=16).digest()


def comparable_text(conversation: Conversation) -> str:
    """Return the text by which near duplicates are compared."""
    parts = [part for message in conversation.messages for part in (message.text, message.context)]
    return " ".join(normalised("\n".join(parts)).split())


def shingle_hashes(text: str, ngram: int) -> Hashes:
    """Return the set of shingles of a text as sorted 64-bit hashes, `(number of different ones,)`."""
    return np.unique(window_hashes(code_points(text), ngram))


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return the size of the intersection of two sets divided by that of their union.

    Args:
        first: sorted, without repetitions, not empty.
        second: likewise.
    """
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def choose_bands(threshold: float, num_permutations: int) -> tuple[int, int]:
    """Return the number of bands and their rows: the most rows with which a pair at the threshold is found.

    More rows give fewer candidates to compare; `RECALL` is the least probability to compare a pair at the threshold.
    """
    for rows in range(num_permutations, 0, -1):
        bands = num_permutations // rows
        if _recall(threshold, bands, rows) >= RECALL:
            return bands, rows
    return num_permutations, 1


def _recall(similarity: float, num_bands: int, band_rows: int) -> float:
    return float(1 - (1 - similarity**band_rows) ** num_bands)


def _check_range(name: str, value: float, right: bool, rule: str) -> None:
    if not right:
        raise UserError(f"{name}: {value} is not {rule}.")


def _band_number(band: int, content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8, salt=band.to_bytes(2, "big")).digest()
    return int.from_bytes(digest, "big", signed=True)  # SQLite's integers are signed


def _empty_sketch(num_permutations: int, seed: int) -> "MinHash":
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise UserError(
            "near duplicates need the package 'datasketch', which is not installed. Install it with: "
            "pip install 'datasketch>=2,<3'"
        ) from error
    return MinHash(num_perm=num_permutations, seed=seed, hashfunc=int, scheme="affine32")
