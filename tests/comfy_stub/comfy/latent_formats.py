"""The shapes of latents."""


class LatentFormat:
    latent_channels = 4
    latent_dimensions = 2


class SD15(LatentFormat):
    pass


class SDXL(LatentFormat):
    pass


class Wan21(LatentFormat):
    latent_channels = 16
    latent_dimensions = 3
