"""Reference values of the architecture's parts: which test covers which kind of case, and how results are compared.

A case is a file of ``torch.save`` with ``meta``, ``state_dict``, ``inputs`` and ``outputs``: random weights at reduced
width, inputs, and what the reference implementation (CPU, float32) gives for them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

# Kind of case -> the test that runs it. A case is of the longest kind that its file's name begins with.
KINDS = {
    "ss_flow": "test_flow.py::test_geometry_flow",
    "samplers": "test_flow.py::test_sampler",
    "ss_sampler": "test_flow.py::test_sampled_geometry",
    "dino": "test_condition.py::test_dino",
    "pointpatch": "test_condition.py::test_pointmap_embedder",
    "ss_fuser": "test_condition.py::test_fuser",
    "slat_fuser": "test_condition.py::test_fuser",
    "ss_decoder": "test_structure.py::test_decoder",
    "ss_encoder": "test_structure.py::test_encoder",
    "coords": "test_structure.py::test_coordinates",
    "preprocess": "test_structure.py::test_preprocessing",
    "pose_decoder": "test_structure.py::test_pose",
}

_REPOSITORY = Path(__file__).resolve().parents[2]
CASES = Path(os.environ.get("SAM3D_REFERENCE_DIR", _REPOSITORY.parent / "shared" / "parity" / "cases"))

TOLERANCE = 1e-5  # relative to max(1, max|reference|): 2e-4 would let an erf/tanh mix-up of GELU pass


def kind_of(name: str) -> str | None:
    """The kind of the case ``name``, None if no kind fits."""
    return max((kind for kind in KINDS if name.startswith(kind)), key=len, default=None)


def case_names() -> list[str]:
    """All cases in the reference folder; empty if there is none."""
    return sorted(path.stem for path in CASES.glob("*.pt"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument ``case`` runs once for each case of the kinds that the table gives it."""
    if "uncovered_case" in metafunc.fixturenames:
        metafunc.parametrize("uncovered_case", [name for name in case_names() if kind_of(name) is None])
    if "case" not in metafunc.fixturenames:
        return
    test = f"{metafunc.definition.path.name}::{metafunc.function.__name__}"
    kinds = [kind for kind, covering in KINDS.items() if covering == test]
    if not kinds:
        raise pytest.UsageError(f"{test} takes a case, but the table KINDS in test/parity/conftest.py lacks it")
    names = [name for name in case_names() if kind_of(name) in kinds]
    metafunc.parametrize("case", names or [None], indirect=True, ids=names or [f"no-{'-'.join(kinds)}"])


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the reference cases: $SAM3D_REFERENCE_DIR, by default ../shared/parity/cases beside the repository.

    Where it is missing the test is skipped; with CI=true it fails.
    """
    if not case_names():
        message = f"no reference cases in {CASES}: set SAM3D_REFERENCE_DIR"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return CASES


@pytest.fixture(scope="session")
def kinds() -> dict[str, str]:
    """The table: kind of case -> the test that runs it."""
    return KINDS


@pytest.fixture
def case(request: pytest.FixtureRequest, reference_dir: Path) -> dict[str, Any]:
    """One reference case, as its file holds it, with its file's name as ``name``."""
    if request.param is None:
        pytest.skip("the reference folder has no case of this kind")
    path = reference_dir / f"{request.param}.pt"
    return {"name": request.param, **torch.load(path, weights_only=True)}


@pytest.fixture(scope="session")
def manifest(reference_dir: Path) -> Any:
    """``manifest("ss_decoder")`` -> {key: (shape, dtype)} of a released model; skips where the list is missing."""

    def read(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
        path = reference_dir.parent / "manifests" / f"{name}.tsv"
        if not path.is_file():
            pytest.skip(f"no list of the released model's tensors at {path}")
        rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line)
        return {key: (tuple(int(n) for n in shape.strip("[]").split(",") if n), dtype) for key, shape, dtype in rows}

    return read


@pytest.fixture(scope="session")
def assert_matches() -> Any:
    """``assert_matches(result, reference)``: shape, NaN and inf at the same places, and the rest within 1e-5."""
    return _assert_matches


def _assert_matches(result: Any, reference: Any, what: str = "") -> None:
    result, reference = torch.as_tensor(result), torch.as_tensor(reference)
    assert result.shape == reference.shape, f"{what}: shape {tuple(result.shape)}, expected {tuple(reference.shape)}"
    if not reference.is_floating_point():
        assert torch.equal(result.to(reference.dtype), reference), f"{what}: differs"
        return
    finite = reference.isfinite()
    assert torch.equal(result.isfinite(), finite), f"{what}: NaN or inf at other places"
    torch.testing.assert_close(
        result.double()[~finite], reference.double()[~finite], rtol=0, atol=0, equal_nan=True, msg=f"{what}: NaN or inf"
    )
    if finite.any():
        difference = (result.double() - reference.double())[finite].abs().max().item()
        limit = TOLERANCE * max(1.0, reference[finite].abs().max().item())
        assert difference <= limit, f"{what}: differs by {difference:.3g}, allowed are {limit:.3g}"
