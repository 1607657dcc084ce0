"""The documents say what the code says."""

import re
import subprocess
from pathlib import Path

import pytest

from event_sam3d_ros.evaluation.report_text import MEANING, REFERENCE
from event_sam3d_ros.nodes.parameters import NODES, markdown

ROOT = Path(__file__).parents[1]


def test_the_tables_of_topics_and_parameters():
    document = (ROOT / "docs/parameters.md").read_text()
    between = document.split("<!-- parameters:begin -->")[1].split("<!-- parameters:end -->")[0]
    assert between.strip() == markdown().strip(), (
        "paste `python -m event_sam3d_ros.nodes.parameters` between the markers"
    )


def test_the_readme_names_parameters_with_their_defaults():
    rows = re.findall(r"^\| (\S+) \| `(\w+)` \| (\S*) ?\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 8
    for node, name, default in rows:
        for table in ("event_image_node", "reconstruction_node") if node == "both" else (node.strip("`"),):
            known = NODES[table][1].get(name).default
            assert default.strip("`") == (str(known).lower() if isinstance(known, bool) else str(known)), name


def reasons_of(section):
    """The reasons in the first column of a section's table."""
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    found = re.findall(r"`(\w+)`", " ".join(cells))
    assert len(found) == len(set(found))
    return set(found)


def test_every_reason_of_the_nodes_is_explained_and_no_other():
    parts = re.split(r"^## (.+)$", (ROOT / "docs/reasons.md").read_text(), flags=re.MULTILINE)
    explained = {name: reasons_of(section) for name, section in zip(parts[1::2], parts[2::2], strict=True)}
    shared, calibrated = explained.pop("all nodes"), explained.pop("nodes that take a calibration")
    assert set(explained) == {"event_image_node", "reconstruction_node", "dv_camera_node", "simulator_node"}
    for node, own in explained.items():
        code = (ROOT / f"event_sam3d_ros/nodes/{node}.py").read_text()
        counted = set(re.findall(r'"(\w+)"', code.split("_REASONS = (")[1].split("\n)\n")[0]))
        common = shared if node == "simulator_node" else shared | calibrated
        assert common | own == counted and not common & own


def test_env_sh_finds_the_nodes_and_the_command():
    if not (ROOT / "install/setup.sh").exists() or not (ROOT / ".venv").exists():
        pytest.skip("needs what make build makes")
    for shell in ("bash", "sh"):
        script = ". ./env.sh && . ./env.sh && for name in event_image_node event-sam3d; do command -v $name; done"
        command = ["env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent", shell, "-c", script]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert [Path(line).name for line in done.stdout.split()] == ["event_image_node", "event-sam3d"], done.stderr


def test_linked_files_exist():
    for document in [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        ROOT / "training/README.md",
        ROOT / "weights/MODEL_CARD.md",
    ]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_reports_compare_with_the_figures_of_the_model_card():
    card = (ROOT / "weights/MODEL_CARD.md").read_text()
    hard = card.partition("<!-- results:begin -->")[2].partition("<!-- results:end -->")[0].partition("### hard")[2]
    lines = [line.strip("|").split("|") for line in hard.splitlines() if line.startswith("| ")]
    header, *rows = ([cell.split(" ±")[0].strip() for cell in line] for line in lines)
    modes = {row[0]: dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)}
    assert set(REFERENCE) == set(MEANING) & set(header)
    for metric in REFERENCE:
        model = "fused" if modes["sharp"][metric] == "-" else "sharp"
        found = tuple(modes[mode][metric] for mode in ("mean_shape", "inflated_silhouette", model))
        assert REFERENCE[metric] == found, metric
