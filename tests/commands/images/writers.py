"""Small generated files in the formats that the readers take."""

import io
import tarfile

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

CLASSES = ("n01440764", "n01443537", "n02102040")


def pixels(num_images, size=32, seed=0):
    """Random images, uint8 [num_images, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (num_images, size, size, 3), np.uint8)


def smooth(width, height, seed=0):
    """A photograph-like image that survives JPEG."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, form="PNG", mode="RGB"):
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, form)
    return stream.getvalue()


def write_parquet(path, encoded, labels, *, image="img", label="label", group=4, **other):
    """One Parquet file in the layout of the Hugging Face hub."""
    names = [f"{row}.png" for row in range(len(encoded))]
    structs = pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.array(names, pa.string())], ["bytes", "path"]
    )
    columns = {image: structs, label: pa.array(labels, pa.int64())} | other
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def write_cifar_parquet(directory, num_train=12, num_test=5):
    """Both splits, losslessly; returns what a reader should give."""
    found = []
    for split, count, seed in (("train", num_train, 1), ("test", num_test, 2)):
        images, labels = pixels(count, seed=seed), np.arange(count) % 10
        encoded = [encode(image) for image in images]
        write_parquet(directory / f"{split}-00000-of-00001.parquet", encoded, labels)
        found.append((images, labels))
    return found


def cifar_records(images, labels):
    """A member of the binary archive: a label byte, then the red, green and blue planes."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], planes], axis=1).tobytes()


def write_archive(path, members):
    """A .tar.gz of `members`, name -> content."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_cifar_archive(path, per_member=2):
    """All six members; returns the train and the test images with their labels."""
    members, parts = {}, []
    for k in range(6):
        name = f"data_batch_{k + 1}" if k < 5 else "test_batch"
        images, labels = pixels(per_member, seed=k), np.arange(per_member) + k
        members[f"cifar-10-batches-bin/{name}.bin"] = cifar_records(images, labels)
        parts.append((images, labels))
    write_archive(path, members)
    train = [np.concatenate(arrays) for arrays in zip(*parts[:5], strict=True)]
    return [train, parts[5]]


def write_folders(directory, per_class=3, size=(60, 48)):
    """train/ and val/ with a folder per class."""
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            folder = directory / split / name
            folder.mkdir(parents=True)
            for k in range(per_class):
                image = smooth(*size, seed=10 * label + k)
                (folder / f"{name}_{k}.JPEG").write_bytes(encode(image, "JPEG"))
    return directory


def write_imagenet_parquet(directory, size=(60, 48)):
    """The images of `write_folders` as two training files and one of validation."""
    encoded = [encode(smooth(*size, seed=10 * c + k), "JPEG") for c in range(3) for k in range(3)]
    labels = np.repeat(np.arange(3), 3)
    layout = dict(image="image", group=2)
    write_parquet(directory / "train-00000-of-00002.parquet", encoded[:5], labels[:5], **layout)
    write_parquet(directory / "train-00001-of-00002.parquet", encoded[5:], labels[5:], **layout)
    write_parquet(directory / "validation-00000-of-00001.parquet", encoded, labels, **layout)
    return directory
