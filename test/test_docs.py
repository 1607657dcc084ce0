"""The documents say what the code says."""

import re
from pathlib import Path

from event_sam3d_ros.nodes.parameters import markdown

ROOT = Path(__file__).parents[1]


def test_the_readme_has_the_tables_of_topics_and_parameters():
    readme = (ROOT / "README.md").read_text()
    between = readme.split("<!-- parameters:begin -->")[1].split("<!-- parameters:end -->")[0]
    assert between.strip() == markdown().strip(), (
        "paste `python -m event_sam3d_ros.nodes.parameters` between the markers"
    )


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
