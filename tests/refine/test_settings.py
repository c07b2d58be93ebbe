"""RefineSettings: ranges, sentences, and diffusers' own step arithmetic."""

import dataclasses

import pytest
from image_refinery.refine.errors import SettingsError
from image_refinery.refine.settings import RefineSettings, count_steps, settings_from


def test_the_defaults_are_those_of_the_specification() -> None:
    settings = RefineSettings()
    assert (
        settings.strength,
        settings.guidance_scale,
        settings.num_inference_steps,
    ) == (0.3, 7.5, 20)
    assert settings.keep_colors is True
    assert settings.steps == 6
    assert settings.guided_steps == 6


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [
        (20, 0.3, 6),
        (100, 0.29, 28),
        (50, 0.58, 28),
        (20, 1.0, 20),
        (1, 1.0, 1),
        (20, 0.0, 0),
    ],
)
def test_steps_are_truncated_as_diffusers_truncates_them(
    steps: int, strength: float, expected: int
) -> None:
    assert count_steps(steps, strength) == expected


@pytest.mark.parametrize("name", ["working_size", "output_size", "regions", "prompt_syntax"])
def test_an_unknown_choice_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        RefineSettings(**{name: "whatever"})


def test_step_count_equals_diffusers_for_every_usual_pair() -> None:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    class Bare:
        scheduler = EulerDiscreteScheduler()

    for steps in (1, 7, 20, 33, 50, 100):
        Bare.scheduler.set_timesteps(steps)
        for hundredths in range(101):
            strength = hundredths / 100
            _, expected = StableDiffusionXLImg2ImgPipeline.get_timesteps(
                Bare(), steps, strength, "cpu"
            )
            assert count_steps(steps, strength) == expected, (steps, strength)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strength": 1.2}, "strength must be a number from 0 to 1, not 1.2."),
        ({"strength": float("nan")}, "strength must be a number from 0 to 1, not nan."),
        ({"strength": "0.3"}, "strength must be a number from 0 to 1, not '0.3'."),
        ({"strength": True}, "strength must be a number from 0 to 1, not True."),
        (
            {"num_inference_steps": 0},
            "num_inference_steps must be a whole number from 1 to 1000, not 0.",
        ),
        (
            {"num_inference_steps": 20.0},
            "num_inference_steps must be a whole number from 1 to 1000, not 20.0.",
        ),
        ({"guidance_scale": -1}, "guidance_scale must be a number from 0 to 100, not -1."),
        ({"scale": 4.5}, "scale must be a number from 1 to 4, not 4.5."),
        ({"aesthetic_score": 11}, "aesthetic_score must be a number from 0 to 10, not 11."),
        ({"seed": -1}, f"seed must be a whole number from 0 to {2**64 - 1}, not -1."),
        ({"guidance_end": 2}, "guidance_end must be a number from 0 to 1, not 2."),
        ({"prompt": None}, "prompt must be a text, not NoneType."),
        (
            {"working_size": "big"},
            "working_size must be one of 'auto', 'keep size', not 'big'.",
        ),
        ({"keep_colors": 1}, "keep_colors must be True or False, not 1."),
    ],
)
def test_each_bad_value_is_one_sentence(changes: dict, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RefineSettings(**changes)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.04), (49, 0.02), (3, 0.3), (1, 0.99)])
def test_settings_without_a_step_name_a_way_out_that_works(steps: int, strength: float) -> None:
    with pytest.raises(SettingsError) as caught:
        RefineSettings(num_inference_steps=steps, strength=strength)
    message = str(caught.value)
    assert f"int({steps} x {strength:g}) = 0" in message
    advice = message.partition("raise strength to ")[2].removesuffix(".")
    least_strength, _, least_steps = advice.partition(" or the number of steps to ")
    assert RefineSettings(num_inference_steps=steps, strength=float(least_strength)).steps == 1
    assert RefineSettings(num_inference_steps=int(least_steps), strength=strength).steps == 1


def test_strength_zero_is_allowed_and_runs_nothing() -> None:
    assert RefineSettings(strength=0).steps == 0


@pytest.mark.parametrize(
    ("end", "scale", "expected"),
    [(1.0, 7.5, 6), (0.5, 7.5, 3), (0.0, 7.5, 0), (1.0, 1.0, 0), (0.1, 7.5, 1)],
)
def test_guided_steps(end: float, scale: float, expected: int) -> None:
    assert RefineSettings(guidance_end=end, guidance_scale=scale).guided_steps == expected


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RefineSettings().strength = 0.5
    with pytest.raises(TypeError):
        RefineSettings(0.5)


def test_describe_holds_every_setting() -> None:
    described = RefineSettings(prompt="a cup").describe()
    assert described["prompt"] == "a cup"
    assert list(described) == [field.name for field in dataclasses.fields(RefineSettings)]


def test_names_and_values_of_version_0_1_are_accepted() -> None:
    old = RefineSettings(keep_colours=False, working_size="as it is")  # pyright: ignore
    assert old == RefineSettings(keep_colors=False, working_size="keep size")
    assert old.keep_colours is old.keep_colors is False
    assert dataclasses.replace(old, keep_colors=True).keep_colours is True
    assert settings_from({"keep_colours": False}).keep_colors is False
    with pytest.raises(TypeError, match="keep_color is not a setting"):
        settings_from({"keep_color": False})
