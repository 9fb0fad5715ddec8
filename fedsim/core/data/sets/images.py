"""Named data sets of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data.schema import Schema, numbers
from fedsim.core.data.sets.reading import CC_BY_4, UCI, codes
from fedsim.core.data.sources import DataSet, File, unpack


def _pixel_schema(side: int, white: float) -> Schema:
    columns = numbers({f"pixel {number}": (0, white) for number in range(side * side)})
    return Schema(columns, label="digit", classes=codes(0, 9), image=(1, side, side))


def _pixel_frame(images: np.ndarray, digits: np.ndarray, schema: Schema) -> pd.DataFrame:
    frame = pd.DataFrame(images.reshape(len(images), -1), columns=list(schema.names))
    frame[schema.label] = digits.astype(str).astype(object)
    return frame


def _load_digits(paths: list[Path]) -> pd.DataFrame:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _pixel_frame(bunch.images, bunch.target, DIGITS.schema)


DIGITS = DataSet(
    name="digits",
    title="Optical recognition of handwritten digits (8 × 8)",
    sectors=("bank",),
    record="image",
    rows=1797,
    licence=CC_BY_4,
    origin=f"{UCI}/dataset/80/optical+recognition+of+handwritten+digits",
    schema=_pixel_schema(8, 16),
    load=_load_digits,
    notes="the test part, as scikit-learn carries it; small images for small CNNs",
)


def _idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes: a magic number, the sizes (big-endian uint32), the values."""
    content = unpack(path)
    sizes = np.frombuffer(content, dtype=">u4", count=content[3], offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3]).reshape(sizes.astype(int))


def _load_mnist(paths: list[Path]) -> pd.DataFrame:
    train_images, train_digits, test_images, test_digits = map(_idx, paths)
    images = np.concatenate([train_images, test_images])
    return _pixel_frame(images, np.concatenate([train_digits, test_digits]), MNIST.schema)


def _mnist_file(name: str, packed: str, content: str) -> File:
    return File(f"{name}.gz", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", packed, content)


MNIST = DataSet(
    name="mnist",
    title="MNIST handwritten digits (28 × 28)",
    sectors=("bank",),
    record="image",
    rows=70_000,
    licence="CC BY-SA 3.0",
    origin="http://yann.lecun.com/exdb/mnist",
    folder="mnist",
    files=(
        _mnist_file(
            "train-images-idx3-ubyte",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        _mnist_file(
            "train-labels-idx1-ubyte",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        _mnist_file(
            "t10k-images-idx3-ubyte",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        _mnist_file(
            "t10k-labels-idx1-ubyte",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    schema=_pixel_schema(28, 255),
    load=_load_mnist,
    notes="training and test images in one table; set data.max_records for a quick run",
)
