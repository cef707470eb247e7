"""Recipes: one YAML file per use, with formats, calibration, algorithm options and exceptions."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen3q.errors import UsageError
from qwen3q.files import read_text
from qwen3q.plan.schemes import GROUPED_LAYOUTS, Override, Scheme, parse_scheme

MAX_RECIPE_BYTES = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CalibrationRecipe(_Section):
    """What to calibrate on.

    Attributes:
        source: a set by name, a file, ``hub:...`` or ``self``.
        samples: rows; if absent, as many as are enough, up to 256.
        length: tokens per row.
        tokens_per_channel: what is enough: tokens for each input channel of the widest linear;
            None for all there are.
        thinking: render chats in thinking mode or not; both modes if absent.
    """

    source: str = "balanced"
    samples: int | None = Field(default=None, ge=1)
    length: int = Field(default=512, ge=16)
    tokens_per_channel: float | None = Field(default=16, gt=0)
    thinking: bool | None = None


class AlgorithmRecipe(_Section):
    """How codes are found; the fields of ``quantize.solve.SolveOptions``.

    Attributes:
        name: ``gptq`` (error feedback), ``awq`` (scale and clip search) or ``rtn`` (range search).
        smoothing: fold scales into the neighbours of a linear where the search shows it helps.
        damping: share of the Hessian's mean diagonal added to it.
        min_expert_tokens: an expert that fewer tokens reach is topped up.
        sweeps: passes of refinement after error feedback.
    """

    name: Literal["gptq", "awq", "rtn"] = "gptq"
    smoothing: bool = True
    damping: float = Field(default=0.01, gt=0, lt=1)
    min_expert_tokens: int = Field(default=128, ge=1)
    sweeps: int = Field(default=2, ge=0, le=100)

    def options(self) -> dict[str, str | bool | float | int]:
        """Keyword arguments of ``SolveOptions``."""
        return {"algorithm": self.name, **self.model_dump(exclude={"name"})}


class OverrideRecipe(_Section):
    """An exception for the linears whose module name matches.

    Attributes:
        match: module name, ``*`` for any text: ``model.layers.0.*``, ``*.down_proj``.
        keep_float: leave them as they are.
        bits, group_size, symmetric: instead of the format's.
    """

    match: str = Field(min_length=1)
    keep_float: bool = False
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None


class Recipe(_Section):
    """A whole recipe.

    Attributes:
        summary: one line for people.
        formats: what to write, such as ``gptq:int4`` or ``gguf:Q4_K_M``.
        bits, group_size, symmetric: instead of each format's own; only the formats that are
            quantized with calibration have them.
        calibration: the text.
        algorithm: how codes are found.
        activation_memory_gib: host memory for activations, beyond which they go to files.
        overrides: exceptions by module name; the first that matches counts.
    """

    summary: str = ""
    formats: tuple[str, ...] = Field(min_length=1)
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    calibration: CalibrationRecipe = CalibrationRecipe()
    algorithm: AlgorithmRecipe = AlgorithmRecipe()
    activation_memory_gib: float = Field(default=8, gt=0)
    overrides: tuple[OverrideRecipe, ...] = ()

    @property
    def gguf_formats(self) -> list[str]:
        """The formats that llama.cpp's quantizers write."""
        return [name for name in self.formats if name.lower().startswith("gguf")]

    def schemes(self) -> list[Scheme]:
        """The schemes of the formats that are safetensors folders, exceptions included.

        Raises:
            UsageError: an unknown format, or numbers it can't have.
        """
        exceptions = tuple(
            Override(o.match, o.keep_float, o.bits, o.group_size, o.symmetric)
            for o in self.overrides
        )
        schemes = []
        for name in self.formats:
            if name in self.gguf_formats:
                continue
            plain = parse_scheme(name)
            fits = plain.is_uniform
            schemes.append(
                parse_scheme(
                    name,
                    bits=self.bits if fits else None,
                    group_size=self.group_size if fits and not plain.activation_bits else None,
                    symmetric=self.symmetric if fits else None,
                    overrides=exceptions,
                )
            )
        return schemes


def recipes_folder() -> Path:
    """``recipes/``: inside an installed package, beside it in a checkout."""
    package = Path(str(resources.files("qwen3q")))
    installed = package / "data" / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a YAML file of one's own.

    Raises:
        UsageError: no such recipe, no YAML, or a key that is unknown or out of range.
    """
    path = recipes_folder() / f"{name}.yaml"
    if name not in recipe_names():
        path = Path(name).expanduser()
        if not path.is_file():
            near = difflib.get_close_matches(name, recipe_names(), n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"There is no recipe {name!r}.",
                f"{meant}Known: {', '.join(recipe_names())}; or give a YAML file.",
            )
    return read_recipe(path)


def read_recipe(path: Path) -> Recipe:
    """A recipe from a YAML file.

    Raises:
        UsageError: names the key that is wrong and why.
    """
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise UsageError(f"{path} has {path.stat().st_size} bytes; that is no recipe.")
    try:
        raw = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {_first_line(error)}.") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds no keys; a recipe has at least `formats`.")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explained(path, error) from None
    _require_use(path, recipe)
    return recipe


def _require_use(path: Path, recipe: Recipe) -> None:
    """Refuses a key that none of the formats has a use for."""
    schemes = recipe.schemes()
    uniform = any(scheme.is_uniform for scheme in schemes)
    grouped = any(scheme.layout in GROUPED_LAYOUTS for scheme in schemes)
    uses = {"bits": uniform, "group_size": grouped, "symmetric": uniform, "overrides": schemes}
    for key, used in uses.items():
        if key in recipe.model_fields_set and not used:
            raise UsageError(
                f"{path}: {key} changes nothing about {', '.join(recipe.formats)}.",
                "Leave it out: the formats themselves say which tensor gets how many bits.",
            )


def _explained(path: Path, error: ValidationError) -> UsageError:
    """The first thing that is wrong, with the key as the file has it and its value."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section = _keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), section, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        return UsageError(
            f"{path}: there is no key {key}.",
            f"{meant}Known there: {', '.join(section) or 'none'}; recipes/README.md tells more.",
        )
    value = repr(first["input"])
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    said = str(first["msg"]).partition(" or instance of")[0]
    said = said.replace("tuple", "list").replace("Tuple", "List")
    return UsageError(
        f"{path}: {key} is {shown}: {said[0].lower()}{said[1:]}.",
        "recipes/README.md lists the keys.",
    )


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """The keys that a recipe has at ``place``."""
    model: Any = Recipe
    for part in place:
        if isinstance(part, int):
            continue
        found = [
            kind
            for kind in _kinds(model.model_fields[part].annotation)
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _kinds(annotation: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))]


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
