"""3D Gaussian splats: read and write, render, and fit the colors to images. Plain torch."""

from .cameras import Camera, Frame, even_sphere, frame, orbit_camera, ring
from .ply import read_ply, write_ply
from .rasterizer import ViewWeights, view_weights
from .solver import fit_colors
from .splat import Splat

__all__ = [
    "Camera",
    "Frame",
    "Splat",
    "ViewWeights",
    "even_sphere",
    "fit_colors",
    "frame",
    "orbit_camera",
    "read_ply",
    "ring",
    "view_weights",
    "write_ply",
]
