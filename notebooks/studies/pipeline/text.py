"""The text: characters as tokens, a part to train on and a part to validate on."""

import hashlib
import pathlib
import random
from typing import Any, NamedTuple

import numpy as np

from dcasgd_jax.commands import errors

MAX_VOCABULARY = 256
VALIDATION_SHARE = 10  # the last tenth
GENERATED_CHARACTERS = 200_000


class Text(NamedTuple):
    """A text and where it comes from."""

    name: str  # of the file, without its folder
    sha256: str  # of its bytes
    tokens: np.ndarray  # int32 [characters], in [0, len(vocabulary))
    vocabulary: str  # the characters in it, in order

    @property
    def train(self) -> np.ndarray:
        """Tokens to train on."""
        return self.tokens[: self._num_train]

    @property
    def validation(self) -> np.ndarray:
        """Tokens that no run trains on."""
        return self.tokens[self._num_train :]

    @property
    def _num_train(self) -> int:
        return len(self.tokens) - len(self.tokens) // VALIDATION_SHARE

    def describe(self) -> dict[str, Any]:
        """In JSON's types; says nothing about folders."""
        return {
            "text": self.name,
            "sha256": self.sha256,
            "characters": len(self.tokens),
            "vocabulary": len(self.vocabulary),
        }


def read(path: pathlib.Path) -> Text:
    """The text of a file.

    Raises:
      UsageError: If it cannot be read, is no UTF-8 or has too many or too few characters.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise errors.UsageError(
            f"--data-file {path}: cannot be read ({error.strerror}); give a plain text file"
        ) from None
    try:
        return _make_text(path.name, content)
    except UnicodeDecodeError as error:
        raise errors.UsageError(
            f"--data-file {path}: byte {error.start} is not UTF-8; give a plain text file, "
            "converted to UTF-8"
        ) from None
    except ValueError as error:
        raise errors.UsageError(f"--data-file {path}: {error}") from None


def generate(seed: int = 0, num_characters: int = GENERATED_CHARACTERS) -> Text:
    """Sentences of invented words, some of them frequent: something to learn without a file."""
    draw = random.Random(seed)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(150)]
    frequencies = [1 / rank for rank in range(1, len(words) + 1)]
    parts, length = [], 0
    while length < num_characters:
        sentence = " ".join(draw.choices(words, frequencies, k=draw.randint(3, 9)))
        parts.append(f"{sentence.capitalize()}." + draw.choice("    \n"))
        length += len(parts[-1])
    return _make_text("generated", "".join(parts)[:num_characters].encode())


def check_length(text: Text, context: int) -> None:
    """Refuses a text without room for one window in its validation part.

    Raises:
      UsageError: If it is too short.
    """
    if len(text.validation) <= context:
        raise errors.UsageError(
            f"{text.name} has {len(text.tokens)} characters: its last tenth must be longer than "
            f"--context {context}, so give at least {VALIDATION_SHARE * (context + 1)}"
        )


def _make_text(name: str, content: bytes) -> Text:
    characters = content.decode("utf-8")
    if not characters:
        raise ValueError("is empty; give a plain text file")
    vocabulary = sorted(set(characters))
    if len(vocabulary) > MAX_VOCABULARY:
        raise ValueError(
            f"has {len(vocabulary)} different characters, more than {MAX_VOCABULARY}; give a text "
            "in one alphabet"
        )
    if len(vocabulary) < 2:
        raise ValueError(f"has nothing but {vocabulary[0]!r}; there is nothing to learn")
    token_of = {character: token for token, character in enumerate(vocabulary)}
    tokens = np.fromiter(map(token_of.__getitem__, characters), np.int32, len(characters))
    return Text(name, hashlib.sha256(content).hexdigest(), tokens, "".join(vocabulary))
