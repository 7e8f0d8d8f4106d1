"""Default hyperparameters: read from the record of some tuning runs, `defaults.json`.

That file holds what these commands chose, and all that they tried:

    dcasgd-jax compare --tune --model mlp --lambda0 0.5,1,2,4,8,16,32,64 --out mlp
    dcasgd-jax compare --tune --model softmax --lambda0 0.5,1,2,4,8,16,32,64 --out softmax
    python -m dcasgd_jax.commands.defaults mlp/compare.json softmax/compare.json

A method that comes later is tuned alone (`--methods`), and joins the others, with its own date, if
its setting and seeds are theirs: `python -m dcasgd_jax.commands.defaults --add its/compare.json`.
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


def joined(record: dict[str, Any], tuning: dict[str, Any]) -> dict[str, Any]:
    """The record of a model, and the methods of another tuning run.

    Raises:
      ValueError: If that run was another experiment, or has a method that is there already.
    """
    about = [name for name in record if name not in ("date", "versions", "methods")]
    for name in about:
        if record[name] != tuning[name]:
            raise ValueError(f"{name} was {record[name]} and is {tuning[name]} now.")
    for name in tuning["methods"]:
        if name in record["methods"]:
            raise ValueError(f"{name} is in the record already.")
    dated = {name: {"date": tuning["date"], **of} for name, of in tuning["methods"].items()}
    return {**record, "methods": {**record["methods"], **dated}}


def main(arguments: list[str]) -> None:
    """Writes the record anew, or with `--add` joins methods to it."""
    add = arguments[:1] == ["--add"]
    found = dict(tuning_records()) if add else {}
    for path in arguments[add:]:
        tuning = records.read_json(path)["tuning"]
        model = tuning["setting"]["model"]
        found[model] = joined(found[model], tuning) if add else tuning
    records.write_json(FILE, found)


if __name__ == "__main__":
    main(sys.argv[1:])
