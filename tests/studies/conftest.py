"""The studies are programs beside the package: their folder is where their modules are found."""

import pathlib
import sys

STUDIES = pathlib.Path(__file__).parents[2] / "notebooks" / "studies"

sys.path.append(str(STUDIES))
