"""Image Refinery: a ComfyUI node pack that turns an image into words and into a better image.

ComfyUI imports this file, and so does everyone who uses the plain Python packages below it. It
imports nothing itself, so that `import image_refinery.refine` needs no ComfyUI.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the pack's ComfyExtension; ComfyUI calls this once, when it loads the pack."""
    from .nodes import ImageRefineryExtension

    return ImageRefineryExtension()
