"""What the command line says of each experiment, and the options that only one of them has."""

import dataclasses

from dcasgd_jax.commands.reproduce import paper

_CIFAR10, _IMAGENET = paper.CIFAR10, paper.IMAGENET

_CALL_AGAIN = """\
Every finished run is one line
of results.jsonl in the folder --out. Call it again after an interruption, or with more methods,
workers, learning rates or seeds: it goes on, and skips what is there."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Words and numbers of one experiment.

    Args:
      help: One line.
      description: Above the options.
      files: What `--data-dir` holds.
      cached: What `--cache-dir` keeps.
      tested: The kind of images that test.
      subset: Which images a subset takes.
      augmentation: What is done to the images to train on.
      models: Name -> what it is; the first is the paper's.
      checkpoint_every: Epochs between two checkpoints.
      examples: Lines under the options.
      numbers: Option of this experiment alone -> its default and what it is.
    """

    help: str
    description: str
    files: str
    cached: str
    tested: str
    subset: str
    augmentation: str
    models: dict[str, str]
    checkpoint_every: float
    examples: tuple[str, ...]
    numbers: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


TEXTS = {
    "cifar10": Texts(
        help="the paper's CIFAR-10 experiment",
        description=f"""\
Trains on CIFAR-10 as the paper does: ResNet-20, {_CIFAR10.batch_size} images per worker and \
gradient,
{_CIFAR10.epochs} epochs, a learning rate of {_CIFAR10.learning_rate} that falls to a tenth after \
one half
and after three quarters of them, no momentum and no weight decay. {_CALL_AGAIN}""",
        files="train-*.parquet and test-*.parquet, or cifar-10-binary.tar.gz",
        cached="decoded images",
        tested="test",
        subset="the first",
        augmentation="crop from 4 pixels of padding, flip",
        models={
            "resnet20": "the paper's network",
            "small": "three convolutions, 69,000 parameters, for a CPU",
            "tiny": "8 layers and 1,500 parameters, to try the command out",
        },
        checkpoint_every=1,
        examples=(
            "  dcasgd-jax reproduce cifar10 --data-dir data --workers 8 --seeds 3",
            "  dcasgd-jax reproduce cifar10 --methods asgd dcasgd-capped --workers 8 \\",
            "      --learning-rate asgd=0.5,0.1 --lambda0 dcasgd-capped=100,300 --subset 10000",
        ),
    ),
    "imagenet": Texts(
        help="the paper's ImageNet experiment",
        description=f"""\
Trains on ImageNet as the paper does: ResNet-50, {_IMAGENET.workers[0]} workers, \
{_IMAGENET.batch_size} images per worker and
gradient, a learning rate of {_IMAGENET.learning_rate} that falls to a tenth every 30 epochs, \
lambda0 {_IMAGENET.lambda0["dcasgd-a"]:g} with
ms_decay {_IMAGENET.ms_decay:g} for dcasgd-a. Ours, since what we know of the paper does not say: \
{_IMAGENET.epochs} epochs in
all (so the rate falls after 1/3 and 2/3 of them), no momentum and no weight decay, random
resized crops and flips, stride 2 in the 3x3 convolutions; lambda0 of dcasgd-c is the paper's on
CIFAR-10, that of dcasgd-capped is as dcasgd-a, untried. Images are read from the disk and decoded
ahead while the device trains. {_CALL_AGAIN}""",
        files="train/<class>/*.JPEG and val/<class>/*.JPEG, or train-*.parquet and "
        "validation-*.parquet",
        cached="copies of Parquet files that are fast to read in random order",
        tested="validation",
        subset="a random, always the same choice of",
        augmentation="random resized crop, flip",
        models={
            "resnet50": "the paper's network",
            "tiny": "2 blocks and few filters, to try the command out",
        },
        checkpoint_every=0.1,
        examples=(
            "  dcasgd-jax reproduce imagenet --data-dir imagenet --dtype bfloat16",
            "  dcasgd-jax reproduce imagenet --data-dir imagenet --subset 100000 --epochs 30 \\",
            "      --image-size 128 --methods asgd dcasgd-a --lambda0 dcasgd-a=2,20",
        ),
        numbers={
            "--image-size": (224, "pixels of a side of the crops"),
            "--num-classes": (1000, "classes of the data"),
        },
    ),
}
"""Name of the experiment -> its words."""
