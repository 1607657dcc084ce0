"""The reader of `rosbags` for rosbag2, for bags that it refuses: metadata that name no storage, and messages or chunks
that are damaged, which are left out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.reader import DirectoryReader
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

from event_sam3d_ros.recordings.mcap_reader import Messages, SoundMcapReader


class _FolderReader(DirectoryReader):
    """Where the metadata name no storage, the files tell it. Compressed messages that are damaged are left out."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        kinds: dict[str, Any] = {**DirectoryReader.STORAGE_PLUGINS, "mcap": SoundMcapReader}
        self.STORAGE_PLUGINS = {**kinds, "": kinds["sqlite3" if any(path.glob("*.db3*")) else "mcap"]}
        self.damage: list[Exception] = []

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Messages:
        """All messages of the connections, file after file."""
        self.damage = []
        is_compressed = self.metadata.compression_mode == "message"
        if is_compressed:
            self.metadata = self.metadata._replace(compression_mode=None)
        for connection, time, data in super().messages(connections, start, stop):
            try:
                whole = DECOMPRESSORS["zstd"](data, 0) if is_compressed else data
            except Exception as error:  # whatever zstd says
                self.damage.append(error)
                continue
            yield connection, time, whole


class BagReader(Reader):
    """A rosbag2 folder or file. ``damage``: errors of what the latest `messages` left out."""

    STORAGE_PLUGINS = {**Reader.STORAGE_PLUGINS, "dir": _FolderReader, ".mcap": SoundMcapReader}

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    @property
    def salvaged(self) -> str:
        """Why a file of the bag, which is open, was read without its index; empty for a bag in order."""
        return next(filter(None, (getattr(one, "salvaged", "") for one in (self.storage, *self._files()))), "")

    @property
    def damage(self) -> list[Exception]:
        """Why chunks were left out."""
        return [error for one in (self.storage, *self._files()) for error in getattr(one, "damage", [])]

    def _files(self) -> list[Any]:
        return getattr(self.storage, "storages", [])
