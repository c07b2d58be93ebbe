"""Read and write .ply files in the layout of 3D Gaussian Splatting (Kerbl et al., 2023).

Such a file stores the logarithm of the scales, the logit of the opacity, and the harmonics above
the first by channel: all of red, then green, then blue.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import SplatError
from .splat import Splat

_MAX_HEADER_BYTES = 64 * 1024
_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "<i2",
    "ushort": "<u2",
    "int": "<i4",
    "uint": "<u4",
    "int8": "i1",
    "uint8": "u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
    "float": "<f4",
    "float32": "<f4",
    "double": "<f8",
    "float64": "<f8",
}
_POSITIONS = ("x", "y", "z")
_COLORS = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES = ("scale_0", "scale_1", "scale_2")
_ROTATIONS = ("rot_0", "rot_1", "rot_2", "rot_3")
_NEEDED = (*_POSITIONS, *_COLORS, "opacity", *_SCALES, *_ROTATIONS)
_HARMONICS = (0, 9, 24, 45)
"""How many values the harmonics above the first have, for degree 0 to 3."""
_MIN_SCALE, _MIN_OPACITY = 1e-12, 1e-6


def read_ply(path: str | Path) -> Splat:
    """Read a splat from a binary .ply file.

    Raises:
        SplatError: the file is missing, truncated or no splat; or it holds no Gaussians, or NaN.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(_MAX_HEADER_BYTES)
        header, offset = _split_header(start, path)
        count, layout = _vertices(header, path)
        if path.stat().st_size < offset + count * layout.itemsize:
            raise SplatError(f"{path} is truncated: copy or download the file again.")
        if count == 0:
            raise SplatError(f"{path} has no Gaussians: check the program that wrote it.")
        rows = np.fromfile(path, layout, count, offset=offset)
    except OSError as error:
        raise SplatError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    try:
        return _splat(rows)
    except SplatError as error:
        raise SplatError(f"{path}: {error}") from None


def write_ply(splat: Splat, path: str | Path) -> None:
    """Write a splat as a binary .ply file that splat viewers and ComfyUI open.

    Raises:
        OSError: the file cannot be written.
    """
    rest = splat.sh[:, 1:].mT.flatten(1)  # (N, 3 (K - 1)), by channel
    opacities = splat.opacities.clamp(_MIN_OPACITY, 1 - _MIN_OPACITY)
    columns = {
        _POSITIONS: splat.positions,
        ("nx", "ny", "nz"): torch.zeros_like(splat.positions),  # normals, which viewers expect
        _COLORS: splat.sh[:, 0],
        tuple(f"f_rest_{index}" for index in range(rest.shape[1])): rest,
        ("opacity",): opacities.logit()[:, None],
        _SCALES: splat.scales.clamp_min(_MIN_SCALE).log(),
        _ROTATIONS: splat.rotations,
    }
    names = [name for group in columns for name in group]
    values = torch.cat([part.float().cpu() for part in columns.values()], dim=1)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(splat)}"]
    header += [*(f"property float {name}" for name in names), "end_header", ""]
    with Path(path).open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(values.numpy().astype("<f4", copy=False).tobytes())


def _split_header(start: bytes, path: Path) -> tuple[list[list[str]], int]:
    """Return the words of each line of the header, and where the data begins."""
    if not start.startswith((b"ply\n", b"ply\r")):
        raise SplatError(f"{path} is not a .ply file: convert the splat to .ply first.")
    end = re.search(rb"\nend_header\r?\n", start)
    if end is None:
        raise SplatError(f"{path} has a damaged header: copy or download the file again.")
    lines = start[: end.start()].decode("ascii", "replace").splitlines()
    return [line.split() for line in lines if line.strip()], end.end()


def _vertices(header: list[list[str]], path: Path) -> tuple[int, np.dtype[Any]]:
    """Return the number and the layout of the Gaussians that a header announces."""
    count, fields, element = 0, [], ""
    try:
        for word, *rest in header:
            if word == "format" and rest[0] != "binary_little_endian":
                raise SplatError(
                    f"{path} is {rest[0]}, but only binary_little_endian can be read: save it as a "
                    "binary .ply."
                )
            if word == "element":
                if not element and rest[0] != "vertex":
                    raise SplatError(_not_a_splat(path, f"it begins with {rest[0]}"))
                element = rest[0]
                count = int(rest[1]) if element == "vertex" else count
                if count < 0:
                    raise ValueError
            elif word == "property" and element == "vertex":
                fields.append((rest[1], _TYPES[rest[0]]))
        layout = np.dtype(fields)
    except (IndexError, KeyError, ValueError) as error:
        if isinstance(error, SplatError):
            raise
        raise SplatError(f"{path} has a damaged header: copy or download the file again.") from None
    missing = [name for name in _NEEDED if name not in (layout.names or ())]
    if missing:
        raise SplatError(_not_a_splat(path, f"it has no {missing[0]}"))
    return count, layout


def _not_a_splat(path: Path, reason: str) -> str:
    return (
        f"{path} is not a Gaussian splat but a mesh or a point cloud ({reason}): choose the .ply "
        "file of a splat."
    )


def _splat(rows: np.ndarray) -> Splat:
    """Turn rows as they are stored into a Splat."""
    present = rows.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in present)
    harmonics = [f"f_rest_{index}" for index in range(rest)]
    if rest not in _HARMONICS or not set(harmonics) <= set(present):
        raise SplatError(
            f"Its {rest} values f_rest are no whole degree of harmonics: export it again."
        )

    def read(*names: str) -> torch.Tensor:
        columns = [rows[name].astype(np.float32) for name in names]
        return torch.from_numpy(np.stack(columns, axis=1))

    sh = read(*_COLORS)[:, None]
    if rest:
        higher = read(*harmonics)
        sh = torch.cat([sh, higher.reshape(len(rows), 3, -1).mT], dim=1)
    return Splat(
        positions=read(*_POSITIONS),
        scales=read(*_SCALES).exp(),
        rotations=read(*_ROTATIONS),
        opacities=read("opacity")[:, 0].sigmoid(),
        sh=sh,
    )
