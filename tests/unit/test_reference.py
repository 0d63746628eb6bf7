"""docs/reference.md says what the program says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_that_of_this_program() -> None:
    module = runpy.run_path(str(DOCS / "reference.py"))
    assert (DOCS / "reference.md").read_text() == module["text"](), "run `make docs` and commit the result"
