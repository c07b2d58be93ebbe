"""Inputs, outputs, Schema and ComfyNode with the parameters that ComfyUI 0.3.64 has."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


class NumberDisplay(str, Enum):
    number = "number"
    slider = "slider"


class _HasType:
    """Knows the wire type of the class that it is nested in."""

    Parent: Any = None

    @property
    def io_type(self) -> str:
        return self.Parent.io_type

    def get_io_type(self) -> str:
        return self.io_type


class Input(_HasType):
    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        extra_dict: dict[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.display_name = display_name
        self.optional = optional
        self.tooltip = tooltip
        self.lazy = lazy
        self.extra_dict = extra_dict or {}

    def as_dict(self) -> dict[str, Any]:
        return _without_none(
            {
                "display_name": self.display_name,
                "optional": self.optional,
                "tooltip": self.tooltip,
                "lazy": self.lazy,
                **self.extra_dict,
            }
        )


class WidgetInput(Input):
    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        default: Any = None,
        socketless: bool | None = None,
        widget_type: str | None = None,
        force_input: bool | None = None,
        extra_dict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(id, display_name, optional, tooltip, lazy, extra_dict)
        self.default = default
        self.socketless = socketless
        self.widget_type = widget_type
        self.force_input = force_input

    def get_io_type(self) -> str:
        return self.widget_type or self.io_type

    def _own_fields(self) -> dict[str, Any]:
        """What the widget of a subclass adds, by its name on the wire."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        widget = {
            "default": self.default,
            "socketless": self.socketless,
            "widgetType": self.widget_type,
            "forceInput": self.force_input,
        }
        return super().as_dict() | _without_none(widget | self._own_fields())


class Output(_HasType):
    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id = id
        self.display_name = display_name
        self.tooltip = tooltip
        self.is_output_list = is_output_list


class _Type:
    """A socket type: every subclass gets Input and Output classes of its own."""

    io_type: str
    Input: Any
    Output: Any

    def __init_subclass__(cls) -> None:
        for name, base in (("Input", Input), ("Output", Output)):
            own = cls.__dict__.get(name, base)
            setattr(cls, name, type(name, (own,), {"Parent": cls}))


def Custom(io_type: str) -> Any:
    return type("CustomType", (_Type,), {"io_type": io_type})


class Boolean(_Type):
    io_type = "BOOLEAN"

    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: bool | None = None,
            label_on: str | None = None,
            label_off: str | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless, None, force_input
            )
            self.label_on = label_on
            self.label_off = label_off

        def _own_fields(self) -> dict[str, Any]:
            return {"label_on": self.label_on, "label_off": self.label_off}


class Int(_Type):
    io_type = "INT"

    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: int | None = None,
            min: int | None = None,
            max: int | None = None,
            step: int | None = None,
            control_after_generate: bool | None = None,
            display_mode: NumberDisplay | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless, None, force_input
            )
            self.min = min
            self.max = max
            self.step = step
            self.control_after_generate = control_after_generate
            self.display_mode = display_mode

        def _own_fields(self) -> dict[str, Any]:
            return {
                "min": self.min,
                "max": self.max,
                "step": self.step,
                "control_after_generate": self.control_after_generate,
                "display": self.display_mode.value if self.display_mode else None,
            }


class Float(_Type):
    io_type = "FLOAT"

    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: float | None = None,
            min: float | None = None,
            max: float | None = None,
            step: float | None = None,
            round: float | None = None,
            display_mode: NumberDisplay | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless, None, force_input
            )
            self.min = min
            self.max = max
            self.step = step
            self.round = round
            self.display_mode = display_mode

        def _own_fields(self) -> dict[str, Any]:
            return {
                "min": self.min,
                "max": self.max,
                "step": self.step,
                "round": self.round,
                "display": self.display_mode,
            }


class String(_Type):
    io_type = "STRING"

    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            multiline: bool = False,
            placeholder: str | None = None,
            default: str | None = None,
            dynamic_prompts: bool | None = None,
            socketless: bool | None = None,
            force_input: bool | None = None,
        ) -> None:
            super().__init__(
                id, display_name, optional, tooltip, lazy, default, socketless, None, force_input
            )
            self.multiline = multiline
            self.placeholder = placeholder
            self.dynamic_prompts = dynamic_prompts

        def _own_fields(self) -> dict[str, Any]:
            return {
                "multiline": self.multiline,
                "placeholder": self.placeholder,
                "dynamicPrompts": self.dynamic_prompts,
            }


class Combo(_Type):
    io_type = "COMBO"

    class Input(WidgetInput):
        def __init__(
            self,
            id: str,
            options: list[str] | None = None,
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            default: str | None = None,
            control_after_generate: bool | None = None,
            upload: Any = None,
            image_folder: Any = None,
            remote: Any = None,
            socketless: bool | None = None,
        ) -> None:
            super().__init__(id, display_name, optional, tooltip, lazy, default, socketless)
            self.options = options
            self.control_after_generate = control_after_generate
            if upload is not None or image_folder is not None or remote is not None:
                raise NotImplementedError(
                    "comfy_stub: upload, image_folder and remote are not here"
                )

        def _own_fields(self) -> dict[str, Any]:
            return {
                "multiselect": False,
                "options": self.options,
                "control_after_generate": self.control_after_generate,
            }


class MultiType(_Type):
    io_type = "COMFY_MULTITYPED_V3"

    class Input(Input):
        def __init__(
            self,
            id: str | Input,
            types: list[Any],
            display_name: str | None = None,
            optional: bool = False,
            tooltip: str | None = None,
            lazy: bool | None = None,
            extra_dict: dict[str, Any] | None = None,
        ) -> None:
            self.input_override: Input | None = None
            name = id
            if isinstance(id, Input):
                widget = copy.copy(id)
                self.input_override = widget
                name = widget.id
                optional = widget.optional or optional
                tooltip = tooltip if widget.tooltip is None else widget.tooltip
                display_name = display_name if widget.display_name is None else widget.display_name
                lazy = lazy if widget.lazy is None else widget.lazy
                if isinstance(widget, WidgetInput):
                    widget.widget_type = widget.get_io_type()
            super().__init__(str(name), display_name, optional, tooltip, lazy, extra_dict)
            self.types = types

        def get_io_type(self) -> str:
            names = [kind.io_type for kind in self.types]
            if self.input_override is not None:
                names.insert(0, self.input_override.get_io_type())
            return ",".join(dict.fromkeys(names))

        def as_dict(self) -> dict[str, Any]:
            widget = {} if self.input_override is None else self.input_override.as_dict()
            return widget | super().as_dict()


class Image(_Type):
    io_type = "IMAGE"


class Mask(_Type):
    io_type = "MASK"


class UpscaleModel(_Type):
    io_type = "UPSCALE_MODEL"


class Latent(_Type):
    io_type = "LATENT"


class Model(_Type):
    io_type = "MODEL"


class Clip(_Type):
    io_type = "CLIP"


class Vae(_Type):
    io_type = "VAE"


class Conditioning(_Type):
    io_type = "CONDITIONING"


class Splat(_Type):
    """Newer than 0.3.64: a node that needs it is registered only where it is."""

    io_type = "SPLAT"


class AnyType(_Type):
    io_type = "*"


class Hidden(str, Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"
    auth_token_comfy_org = "AUTH_TOKEN_COMFY_ORG"
    api_key_comfy_org = "API_KEY_COMFY_ORG"


class HiddenHolder:
    def __init__(
        self,
        unique_id: str | None,
        prompt: Any,
        extra_pnginfo: Any,
        dynprompt: Any,
        auth_token_comfy_org: str | None,
        api_key_comfy_org: str | None,
        **kwargs: Any,
    ) -> None:
        self.unique_id = unique_id
        self.prompt = prompt
        self.extra_pnginfo = extra_pnginfo
        self.dynprompt = dynprompt
        self.auth_token_comfy_org = auth_token_comfy_org
        self.api_key_comfy_org = api_key_comfy_org

    def __getattr__(self, key: str) -> None:
        return None

    @classmethod
    def from_dict(cls, d: dict[Any, Any] | None) -> HiddenHolder:
        given = d or {}
        return cls(**{kind.name: given.get(kind) for kind in Hidden})


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] | None = None
    outputs: list[Output] | None = None
    hidden: list[Hidden] | None = None
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self) -> None:
        """Raise ValueError where two inputs, two outputs, or an input and an output share an id.

        0.33.0 forgives the last; 0.3.64 does not.
        """
        inputs = [one.id for one in self.inputs or []]
        outputs = [one.id for one in self.outputs or []]
        for kind, ids in (("inputs", inputs), ("outputs", outputs)):
            if len(set(ids)) != len(ids):
                raise ValueError(f"comfy_stub: two {kind} of {self.node_id} have one id: {ids}")
        shared = set(inputs) & set(outputs)
        if shared:
            raise ValueError(f"comfy_stub: {shared} of {self.node_id} are inputs and outputs")

    def finalize(self) -> None:
        if self.is_output_node:
            given = self.hidden or []
            wanted = [kind for kind in (Hidden.prompt, Hidden.extra_pnginfo) if kind not in given]
            self.hidden = [*given, *wanted]
        for index, output in enumerate(self.outputs or []):
            if output.id is None:
                output.id = f"_{index}_{output.io_type}_"


class ComfyNode:
    """Class methods only: ComfyUI never keeps an instance."""

    hidden: HiddenHolder | None = None
    SCHEMA: Schema | None = None

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs: Any) -> NodeOutput:
        raise NotImplementedError

    @classmethod
    def check_lazy_status(cls, **kwargs: Any) -> list[str]:
        return [name for name, value in kwargs.items() if value is None]

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        schema = cls.define_schema()
        schema.finalize()
        schema.validate()
        cls.SCHEMA = schema
        return schema

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs in the form of /object_info: {"required": {id: (type, options)}, ...}."""
        schema = cls.define_schema()
        schema.finalize()
        types: dict[str, Any] = {"required": {}}
        for one in schema.inputs or []:
            options = one.as_dict()
            group = "optional" if options.pop("optional") else "required"
            types.setdefault(group, {})[one.id] = (one.get_io_type(), options)
        if schema.hidden:
            types["hidden"] = {kind.name: (kind.value,) for kind in schema.hidden}
        return types

    @classmethod
    def stub_clone(cls, hidden: dict[Any, Any] | None = None) -> Any:
        """A class that carries one run's hidden inputs: the host makes one for every run.

        The host's own way to it has changed since 0.3.64, so this name is the stub's.
        """
        return type(cls.__name__, (cls,), {"hidden": HiddenHolder.from_dict(hidden)})


class NodeOutput:
    def __init__(
        self,
        *args: Any,
        ui: Any = None,
        expand: dict[str, Any] | None = None,
        block_execution: str | None = None,
    ) -> None:
        self.args = args
        self.ui = ui
        self.expand = expand
        self.block_execution = block_execution

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]
