"""The journal of a run, from which another goes on when it was killed (``--state FILE``).

The file begins with a line of JSON that says what run it belongs to. A record for each block follows: a line
of JSON, with what is counted up to the end of the block and a number of bytes; these bytes, what is kept of
the block's rows; and a line with a checksum (CRC-32) of both. Records are appended, so a kill leaves the last
one in part at most, which the checksum shows. Nothing in the file is executed, only compared and checked.
"""

from __future__ import annotations

import json
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

_LONGEST_LINE = 1 << 20


class Journal:
    """The journal of a run, read to the end of its last whole record.

    Parameters
    ----------
    path : Path
        The file. If there is none, the first record makes it.
    command : str
        The subcommand whose run it is.
    inputs : dict of str to str or None
        What each input is known by. The journal of a run with others is refused.
    options : dict of str to bool, int, float, str, list or None
        What else the results depend on, likewise.

    Attributes
    ----------
    path : Path
        The file.
    blocks : int
        Number of blocks that are counted.
    counted : object
        What was counted up to the last of them, as given to `add`; None if there are none.
    """

    def __init__(
        self, path: Path, command: str, inputs: Mapping[str, str | None], options: Mapping[str, Any]
    ) -> None:
        self.path = path
        self.blocks = 0
        self.counted: Any = None
        self._command = f"xent-rs {command}"
        self._header = _line({self._command: __version__, "inputs": inputs, "options": options})
        self._kept: list[tuple[int, int]] = []  # where the bytes of each block are, and how many
        self._file: IO[bytes] | None = None
        if path.exists():
            if not stat.S_ISREG(path.stat().st_mode):
                raise ValueError(f"{path}: not a regular file")
            with path.open("r+b") as file:
                if self._is_begun(file):
                    while self._read_record(file):
                        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def kept(self) -> Iterator[bytes]:
        """Yield what is kept of the rows of each block that is counted."""
        with self.path.open("rb") as file:
            for place, size in self._kept:
                file.seek(place)
                yield file.read(size)

    def add(self, counted: object, kept: bytes) -> None:
        """Append what is counted after a block, and what is kept of its rows."""
        line = _line({"block": self.blocks, "counted": counted, "kept": len(kept)})
        rest = memoryview(line + kept + _checksum(line, kept))
        try:
            if self._file is None:
                # Without a buffer, so that closing writes nothing and cannot fail.
                self._file = self.path.open("ab" if self.blocks else "wb", buffering=0)
                if not self.blocks:
                    rest = memoryview(self._header + bytes(rest))
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.blocks += 1

    def remove(self) -> None:
        """Remove the file: the run is done."""
        self.path.unlink(missing_ok=True)

    def _is_begun(self, file: IO[bytes]) -> bool:
        """Read the first line; tell whether it is whole."""
        found = file.readline(max(_LONGEST_LINE, len(self._header)))
        if found == self._header:
            return True
        if self._header.startswith(found):  # empty, or left so by a kill
            return False
        match _json(found):
            case {self._command: _, "inputs": {}, "options": {}} as header:
                what = self._difference(header)
                raise ValueError(f"{self.path}: is the state of {what} (remove it to begin anew)")
        raise ValueError(f"{self.path}: is no state of {self._command}; expected one, or a new file")

    def _difference(self, header: dict[str, Any]) -> str:
        """Say what another run has that this one has not."""
        expected = json.loads(self._header)
        if header[self._command] != __version__:
            return f"xent_rs {header[self._command]!r}; expected {__version__!r}"
        for name, known in expected["inputs"].items():
            if header["inputs"].get(name) != known:
                return f"a run with another {name}, or one that has changed since"
        for name, value in expected["options"].items():
            if (found := header["options"].get(name)) != value:
                return f"a run with {name} {found!r}; expected {value!r}"
        return "another run"

    def _read_record(self, file: IO[bytes]) -> bool:
        """Read a record, if there is a whole one; cut off one that is not."""
        place = file.tell()
        line = file.readline(_LONGEST_LINE)
        match _json(line):
            case {"block": self.blocks, "counted": counted, "kept": int(size)} if size >= 0:
                kept = file.read(size)
                checksum = _checksum(line, kept)
                if len(kept) == size and file.read(len(checksum)) == checksum:
                    self._kept.append((place + len(line), size))
                    self.counted = counted
                    self.blocks += 1
                    return True
        file.truncate(place)
        return False


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _checksum(line: bytes, kept: bytes) -> bytes:
    return b"%08x\n" % zlib.crc32(kept, zlib.crc32(line))
