"""The reader of `rosbags`, for bags that it refuses: mcap files that were cut, metadata that name no storage."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.reader import DirectoryReader
from rosbags.rosbag2.storage_mcap import McapReader

MCAP_MAGIC = b"\x89MCAP0\r\n"
_FOOTER = 0x02
_DATA_END = 0x0F


class _McapReader(McapReader):
    """Reads a file without its end, as a recorder that was killed leaves it, as far as its records are whole."""

    is_cut = False

    def _open(self) -> None:
        assert self.bio is not None
        self.bio.seek(0, 2)
        size = self.bio.tell()
        self.bio.seek(max(0, size - len(MCAP_MAGIC)))
        if size < 4 * len(MCAP_MAGIC) or self.bio.read() == MCAP_MAGIC:
            self.bio.seek(0)
            super()._open()
            return
        self.is_cut = True
        self.bio.seek(0)
        if self.bio.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
            raise ReaderError("File magic is invalid.")
        self.data_start = len(MCAP_MAGIC)
        self.data_end = self._end_of_records(size)
        self.meta_scan()
        assert self.statistics is not None
        counts = self.statistics.channel_message_counts
        self.connections = [c._replace(msgcount=counts.get(c.id, 0)) for c in self.connections]
        if self.statistics.message_count == 0:
            raise ReaderError("no message is whole")
        first, last = self.statistics.start_time, self.statistics.end_time
        self.metadata = self.metadata._replace(
            duration=last - first + 1,
            start_time=first,
            end_time=last + 1,
            message_count=self.statistics.message_count,
        )

    def _end_of_records(self, size: int) -> int:
        """Position behind the last record (uint8 kind, uint64 size, data) of messages that is whole."""
        assert self.bio is not None
        position = self.data_start
        while position + 9 <= size:
            self.bio.seek(position)
            kind, length = struct.unpack("<BQ", self.bio.read(9))
            if kind in (_FOOTER, _DATA_END) or position + 9 + length > size:
                break
            position += 9 + length
        return position


class _FolderReader(DirectoryReader):
    """Where the metadata name no storage, the files tell it."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        kinds: dict[str, Any] = {**DirectoryReader.STORAGE_PLUGINS, "mcap": _McapReader}
        self.STORAGE_PLUGINS = {**kinds, "": kinds["sqlite3" if any(path.glob("*.db3*")) else "mcap"]}


class BagReader(Reader):
    """A rosbag2 folder or file."""

    STORAGE_PLUGINS = {**Reader.STORAGE_PLUGINS, "dir": _FolderReader, ".mcap": _McapReader}

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    @property
    def is_cut(self) -> bool:
        """Whether a file of the bag, which is open, lacks its end."""
        return any(getattr(storage, "is_cut", False) for storage in getattr(self.storage, "storages", [self.storage]))
