"""Cameras around a splat: rings and an even sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .splat import Splat

FOV_DEGREES = 35.0
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_FRAMED_SHARE = 0.995
_MARGIN = 1.1


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Pixel (i, j), counted from the top left, shows the ray through ((i - width / 2) / focal_px,
    (j - height / 2) / focal_px, 1) in the camera's axes: as ComfyUI's Render Splat.

    Attributes:
        position: (3,), in the splat's axes (y down).
        axes: (3, 3), float64; its rows are the directions right, down and forward.
        focal_px: The focal length in pixels.
        width: In pixels.
        height: In pixels.
    """

    position: Tensor
    axes: Tensor
    focal_px: float
    width: int
    height: int


class Frame(NamedTuple):
    """What the cameras look at: nearly all of a splat.

    Attributes:
        center: (3,), float64.
        radius: In the splat's units.
    """

    center: Tensor
    radius: float


def frame(splat: Splat) -> Frame:
    """Return the sphere that holds 99.5 percent of the Gaussians, so that no stray one counts."""
    positions = splat.positions.double().cpu()
    ordered = positions.sort(dim=0).values
    skip = int(len(positions) * (1 - _FRAMED_SHARE))
    center = (ordered[skip] + ordered[len(positions) - 1 - skip]) / 2
    # A center is not an edge: two standard deviations more.
    reach = (positions - center).norm(dim=1) + 2 * splat.scales.double().cpu().amax(dim=1)
    nth = max(1, math.ceil(len(positions) * _FRAMED_SHARE))
    return Frame(center, max(float(reach.kthvalue(nth).values), 1e-6))


def orbit_camera(
    around: Frame, azimuth: float, elevation: float, size: int, fov: float = FOV_DEGREES
) -> Camera:
    """Return a camera that sees the whole frame.

    Args:
        around: What to look at.
        azimuth: In degrees, around the vertical axis. 0 looks along +z.
        elevation: In degrees, above -90 (from below) and below 90 (from above).
        size: Width and height in pixels.
        fov: The field of view in degrees.
    """
    turn, lift, half = math.radians(azimuth), math.radians(elevation), math.radians(fov) / 2
    forward = torch.tensor(
        [-math.sin(turn) * math.cos(lift), math.sin(lift), math.cos(turn) * math.cos(lift)],
        dtype=torch.float64,
    )
    right = torch.tensor([math.cos(turn), 0.0, math.sin(turn)], dtype=torch.float64)
    down = torch.linalg.cross(forward, right)
    distance = around.radius * _MARGIN / math.sin(half)
    return Camera(
        position=around.center - distance * forward,
        axes=torch.stack([right, down, forward]),
        focal_px=size / 2 / math.tan(half),
        width=size,
        height=size,
    )


def ring(around: Frame, count: int, elevation: float, size: int) -> list[Camera]:
    """Return `count` cameras in a circle, at an elevation in degrees: a turntable."""
    return [orbit_camera(around, 360 * index / count, elevation, size) for index in range(count)]


def even_sphere(
    around: Frame, count: int, size: int, elevations: Sequence[float] = (-60.0, 75.0)
) -> list[Camera]:
    """Return cameras that share out a sphere evenly: a Fibonacci lattice.

    Args:
        around: What to look at.
        count: How many cameras.
        size: Width and height of each in pixels.
        elevations: The lowest and the highest in degrees; equal areas between get equally many.
    """
    low, high = (math.sin(math.radians(degrees)) for degrees in elevations)
    cameras: list[Camera] = []
    for index in range(count):
        lift = math.asin(low + (high - low) * (index + 0.5) / count)
        turn = math.degrees(index * _GOLDEN_ANGLE)
        cameras.append(orbit_camera(around, turn, math.degrees(lift), size))
    return cameras
