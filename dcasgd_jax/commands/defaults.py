"""Default hyperparameters: read from the record of two tuning runs, `defaults.json`.

That file holds what these two commands chose, and all that they tried:

    dcasgd-jax compare --tune --model mlp --lambda0 0.5,1,2,4,8,16,32,64 --out mlp
    dcasgd-jax compare --tune --model softmax --lambda0 0.5,1,2,4,8,16,32,64 --out softmax
    python -m dcasgd_jax.commands.defaults mlp/compare.json softmax/compare.json
"""

import functools
import pathlib
import sys
from typing import Any

from dcasgd_jax.commands import methods, records, settings

FILE = pathlib.Path(__file__).with_name("defaults.json")


@functools.cache
def tuning_records() -> dict[str, Any]:
    """Model name -> the part "tuning" of `compare.json`."""
    return records.read_json(FILE)


def default_hyperparameters(model: str, name: str) -> methods.Hyperparameters | None:
    """What the recorded tuning run chose; None for a method that it did not have."""
    found = tuning_records()[model]["methods"].get(name)
    return found and methods.Hyperparameters(**found["chosen"])


def untuned_parts(setting: settings.Setting) -> list[str]:
    """In what the setting differs from the one that the defaults were tuned for."""
    tuned = tuning_records()[setting.model]["setting"]
    return [name for name, value in setting.describe().items() if value != tuned[name]]


if __name__ == "__main__":
    tunings = [records.read_json(path)["tuning"] for path in sys.argv[1:]]
    records.write_json(FILE, {tuning["setting"]["model"]: tuning for tuning in tunings})
