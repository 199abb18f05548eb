"""Malicious pickles, each of which would make a file if anything opened it as one."""

import builtins
import gzip
import io
import json
import os
import pickle
import pickletools
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard


class Calls:
    """Is pickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def marks(marker: Path) -> list[Calls]:
    """Four ways to make the marker."""
    code = f"open({str(marker)!r}, 'w').close()"
    return [
        Calls(os.system, f"touch {marker}"),
        Calls(os.mkdir, str(marker)),
        Calls(builtins.eval, code),
        Calls(builtins.exec, code),
    ]


def _zip(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
        archive.writestr("../../evil", data)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def _tar(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../evil"):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def _torch(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"x": torch.zeros(2), "y": value}, file, **options)
    return file.getvalue()


def _numpy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([value], dtype=object), allow_pickle=True)
    return file.getvalue()


def _npz(value: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, mean=np.array([value], dtype=object), deviation=np.ones(8), w=np.array([value], dtype=object))
    return file.getvalue()


def payloads(marker: Path) -> dict[str, bytes]:
    """Every kind of malicious file, by its name; each would make the marker."""
    system, mkdir, evaluate, execute = marks(marker)
    plain = pickle.dumps(system, protocol=4)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    framed = (0x80).to_bytes(1, "little") + bytes(7) + b"{" + plain  # begins as a safetensors file of 128 bytes might
    return {
        **{f"os.system, protocol {n}": pickle.dumps(system, protocol=n) for n in range(6)},
        "os.mkdir": pickle.dumps({"weights": mkdir}),
        "eval": pickle.dumps([evaluate]),
        "exec": pickletools.optimize(pickle.dumps({"state_dict": execute})),
        "torch.save": _torch(system),
        "torch.save, legacy": _torch(mkdir, _use_new_zipfile_serialization=False),
        "torch.save, tar": _tar(plain),
        "numpy .npy": _numpy(system),
        "numpy .npz": _npz(execute),
        "behind a safetensors header": len(header).to_bytes(8, "little") + header + bytes(4) + plain,
        "like a safetensors header": framed,
        "zip of a pickle": _zip("archive/data.pkl", plain),
        "zip behind a safetensors header": len(header).to_bytes(8, "little") + header + bytes(4) + _torch(system),
        "gzip": gzip.compress(plain),
        "zstd": zstandard.ZstdCompressor().compress(plain),
        "joblib, zlib": zlib.compress(plain),
        "behind GGUF": b"GGUF\x03\0\0\0" + plain,
        "behind JSON": b'{"a": 1}\n' + plain,
        "as text": pickle.dumps(evaluate, protocol=0).replace(b"\n", b"\r\n"),
        "a module of Python": f"open({str(marker)!r}, 'w').close()\n".encode(),
        "YAML": f"!!python/object/apply:os.system ['touch {marker}']\n".encode(),
    }
