"""The version of this ComfyUI."""

__version__ = "0.3.64"
