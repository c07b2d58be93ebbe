"""Makes ComfyUI treat this computer's CPU as a GPU without free memory, as --novram does.

--novram and --cpu exclude each other, and without a GPU only --cpu starts.
"""

import comfy.model_management

comfy.model_management.vram_state = comfy.model_management.VRAMState.NO_VRAM
comfy.model_management.is_device_cpu = lambda device: False

NODE_CLASS_MAPPINGS = {}
