"""The names that KSampler offers: some of them."""


class KSampler:
    SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m", "ddim")
    SCHEDULERS = ("simple", "normal", "karras", "ddim_uniform")
