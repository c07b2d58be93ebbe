"""3D Gaussian splats: read and write, render, and refine their colors."""

from .cameras import Camera, Frame, even_sphere, frame, orbit_camera, ring
from .ply import read_ply, write_ply
from .rasterizer import ViewWeights, view_weights
from .solver import fit_colors
from .splat import Splat
from .splat_refiner import RefinedSplat, SplatRefiner

__all__ = [
    "Camera",
    "Frame",
    "RefinedSplat",
    "Splat",
    "SplatRefiner",
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
