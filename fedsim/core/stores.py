"""An object store, or any other place that fsspec reaches, as a folder of whole files of arrays.

An object is put whole or not at all where the store's puts are atomic, as in S3, Google's and Azure's;
elsewhere it is written under another name and moved. Whoever keeps files here has to notice a damaged one
all the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.imports import short

_ATOMIC = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"))
"""Protocols whose puts are seen whole or not at all."""


@dataclass(frozen=True)
class Remote:
    """A place in a store, as fsspec writes it: 's3://bucket/folder'."""

    url: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url

    def check(self) -> None:
        """Ask the store for the place, which need not be there.

        Raises:
            InputError: fsspec knows no such store, its package is not installed, or it does not answer.
        """
        try:
            system, path = _opened(self.url)
            system.invalidate_cache()
            system.ls(path)
        except FileNotFoundError:
            pass
        except Exception as error:  # each store has its own
            raise InputError(f"FEDSIM_CACHE = {self.url}: it cannot be read: {short(error)}") from error

    def read(self) -> dict[str, np.ndarray]:
        """Read named arrays from safetensors.

        Raises:
            FileNotFoundError: there is no such object.
            InputError: it is no safetensors file, or the store does not answer.
        """
        from safetensors.numpy import load

        try:
            system, path = _opened(self.url)
            return load(system.cat_file(path))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise InputError(f"cannot read {self.url}: {short(error)}") from error

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write named arrays as safetensors, whole or not at all.

        Raises:
            InputError: the store does not take them.
        """
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        try:
            system, path = _opened(self.url)
            if _ATOMIC.intersection(_protocols(system)):
                system.pipe_file(path, content)
                return
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            temporary = f"{path}.{uuid.uuid4().hex}"
            system.pipe_file(temporary, content)
            if system.exists(path):  # over SFTP nothing is moved onto a file
                system.rm_file(path)
            system.mv(temporary, path)
        except Exception as error:
            raise InputError(f"cannot write {self.url}: {short(error)}") from error


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    return system, str(path)


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
