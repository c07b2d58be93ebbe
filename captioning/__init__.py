"""Describe images with a vision model, and rewrite the descriptions with a text model.

`job` has the jobs and their results, `run` runs them, `options` has the options of a stage, and
`events` has the watcher. Import from these modules: ComfyUI's start needs only the options.
"""
