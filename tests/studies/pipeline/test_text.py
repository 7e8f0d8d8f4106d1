"""The text of `dcasgd-jax shakespeare`: how it is read and split, and what is refused."""

import hashlib

import numpy as np
import pytest
from pipeline import text

from dcasgd_jax.commands import errors


def written(tmp_path, content: bytes):
    path = tmp_path / "poem.txt"
    path.write_bytes(content)
    return path


def test_characters_become_tokens_and_the_last_tenth_validates(tmp_path):
    content = "Größe, größer\r\n" * 20
    found = text.read(written(tmp_path, content.encode()))
    assert "".join(found.vocabulary[token] for token in found.tokens) == content
    assert list(found.vocabulary) == sorted(set(content))
    assert len(found.validation) == len(content) // 10
    np.testing.assert_array_equal(np.concatenate([found.train, found.validation]), found.tokens)
    assert found.describe() == {
        "text": "poem.txt",
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "characters": len(content),
        "vocabulary": len(set(content)),
    }


def test_a_text_too_short_to_split_trains_on_everything(tmp_path):
    found = text.read(written(tmp_path, b"abcab"))
    assert (len(found.train), len(found.validation)) == (5, 0)


def test_the_generated_text_is_the_same_again_and_has_words():
    found = text.generate(num_characters=5000)
    assert found == text.generate(num_characters=5000)._replace(tokens=found.tokens)
    assert found.sha256 != text.generate(seed=1, num_characters=5000).sha256
    assert len(found.tokens) == 5000
    content = "".join(found.vocabulary[token] for token in found.tokens)
    words = content.replace(".", " ").split()
    assert len(set(words)) < len(words) / 3
    text.check_length(found, context=32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a" * 5000, "nothing but 'a'"),
        (b"fine so far \xff\xfe", "byte 12 is not UTF-8"),
        ("".join(map(chr, range(0x4E00, 0x4E00 + 257))).encode(), "257 different characters"),
    ],
)
def test_content_that_is_no_text_to_train_on(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(errors.UsageError) as caught:
        text.read(path)
    assert str(caught.value).startswith(f"--data-file {path}: ")
    assert message in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(errors.UsageError, match=r"cannot be read .No such file"):
        text.read(tmp_path / "missing.txt")
    with pytest.raises(errors.UsageError, match=r"cannot be read .Is a directory"):
        text.read(tmp_path)


def test_a_context_longer_than_the_last_tenth(tmp_path):
    found = text.read(written(tmp_path, b"ab" * 45))
    text.check_length(found, context=8)
    with pytest.raises(errors.UsageError, match=r"has 90 characters.*give at least 100"):
        text.check_length(found, context=9)
