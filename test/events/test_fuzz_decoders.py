"""The search of scripts/fuzz_decoders.py, with ten thousand packets for each encoding."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from event_sam3d_ros.events.codecs import ENCODINGS

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_decoders.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fuzz_decoders", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_random_and_damaged_packets(script, test_data, encoding):
    results = script.fuzz(encoding, script.real_packets(test_data, encoding), 10_000)
    assert results.total() == 10_000


def test_the_search_finds_events_outside_the_image(script):
    """A decoder that breaks the rules does not pass."""
    decoder = script.make_decoder("libcaer", 2048, 2048)
    packet = script._beginning("libcaer")
    assert script.check(decoder, packet) == "events"
    outside = [np.full(1, 2048, kind) for kind in ("i8", "u2", "u2")]
    decoder._run = lambda *_: [*outside, np.ones(1, "u1")]
    with pytest.raises(AssertionError):
        script.check(decoder, packet)
