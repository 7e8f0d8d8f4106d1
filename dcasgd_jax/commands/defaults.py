"""Default hyperparameters: read from the record of a tuning run, `defaults.json`.

That file is what these two commands leave in `OUT/tuned.json`:

    dcasgd-jax compare --tune --model mlp --out OUT
    dcasgd-jax compare --tune --model softmax --out OUT
"""

import functools
import pathlib
from typing import Any

from dcasgd_jax.commands import methods, records, settings

FILE = pathlib.Path(__file__).with_name("defaults.json")


@functools.cache
def tuning_records() -> dict[str, Any]:
    """Model name -> record, as `tuning.record` makes it."""
    return records.read_json(FILE)


def default_hyperparameters(model: str, method: methods.Method) -> methods.Hyperparameters:
    """What the recorded tuning run chose."""
    chosen = tuning_records()[model]["methods"][method.name]["chosen"]
    return methods.Hyperparameters(**chosen)


def untuned_parts(setting: settings.Setting) -> list[str]:
    """In what the setting differs from the one that the defaults were tuned for."""
    tuned = tuning_records()[setting.model]["setting"]
    return [name for name, value in setting.describe().items() if value != tuned[name]]
