"""Describe images with a vision model, and rewrite the descriptions with a text model.

`job` has what a run is to do and what comes of it, `run` does it, `options` has its options, and
`events` who watches. ComfyUI's start needs the options only, so import from these modules.
"""
