"""A splat in memory: 3D Gaussians, as in "3D Gaussian Splatting" (Kerbl et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SplatError

SH_DC = 0.28209479177387814
"""The constant of the first spherical harmonic: 1 / (2 sqrt(pi))."""


@dataclass(frozen=True)
class Splat:
    """N Gaussians, all tensors float32 and on one device.

    The axes are those of 3D Gaussian Splatting files: x to the right, y down, z away from the
    viewer.

    Attributes:
        positions: (N, 3), the centers.
        scales: (N, 3), standard deviations along each Gaussian's own axes, above 0.
        rotations: (N, 4), quaternions w, x, y, z of any length.
        opacities: (N,), 0 to 1.
        sh: (N, K, 3), coefficients of the spherical harmonics of the color; K is 1, 4, 9 or 16. The
            first is the color itself: `colors`.

    Raises:
        SplatError: no Gaussians, other shapes, NaN or infinity.
    """

    positions: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        count = len(self.positions)
        if count == 0:
            raise SplatError("The splat has no Gaussians: check the program that wrote it.")
        wanted = {
            "positions": (count, 3),
            "scales": (count, 3),
            "rotations": (count, 4),
            "opacities": (count,),
            "sh": (count, self.sh.shape[1] if self.sh.ndim == 3 else 1, 3),
        }
        for name, shape in wanted.items():
            values: Tensor = getattr(self, name)
            if tuple(values.shape) != shape:
                raise SplatError(
                    f"The splat's {name} must have the shape {shape}, not {tuple(values.shape)}."
                )
            if not bool(torch.isfinite(values).all()):
                raise SplatError(
                    f"The splat's {name} contain NaN or infinity: export it again, or remove those "
                    "Gaussians in a splat editor."
                )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def colors(self) -> Tensor:
        """The colors without view-dependent harmonics: (N, 3), sRGB, mostly 0 to 1."""
        return self.sh[:, 0] * SH_DC + 0.5

    def with_changed_colors(self, change: Tensor) -> Splat:
        """Return a splat whose `colors` are higher by `change`, (N, 3); nothing else differs."""
        sh = self.sh.clone()
        sh[:, 0] += change / SH_DC
        return replace(self, sh=sh)

    def to(self, device: str | torch.device) -> Splat:
        """Return the splat on another device."""
        return Splat(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def covariances(self) -> Tensor:
        """Return R diag(scales^2) R^T of each Gaussian, (N, 3, 3), float64."""
        axes = _rotation_matrices(self.rotations.double())
        return axes * self.scales.double().square()[:, None] @ axes.mT


def _rotation_matrices(quaternions: Tensor) -> Tensor:
    """Return the matrices (N, 3, 3) of quaternions (N, 4); the identity for 0."""
    w, x, y, z = (quaternions / quaternions.norm(dim=1, keepdim=True).clamp_min(1e-12)).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)
