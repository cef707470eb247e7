"""From what the user asked, a recipe and options, to one job: targets, text and algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3q.errors import UsageError
from qwen3q.plan.recipes import AlgorithmRecipe, CalibrationRecipe, Recipe, load_recipe
from qwen3q.plan.schemes import GROUPED_LAYOUTS, Scheme
from qwen3q.plan.targets import Target, parse_target


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What the user gave; None takes the recipe's or the default.

    Attributes:
        formats: names such as ``gptq:int4``; those of the recipe if empty.
        recipe: by name or path.
        calibration: set, file, ``hub:...`` or ``self``.
        samples, length: rows of calibration text and tokens per row.
        group_size, bits, symmetric: for the formats that are solved with calibration.
        imatrix: an importance matrix is given, which GGUF files take instead of a calibration's.
    """

    formats: tuple[str, ...] = ()
    recipe: str | None = None
    calibration: str | None = None
    samples: int | None = None
    length: int | None = None
    group_size: int | None = None
    bits: int | None = None
    symmetric: bool | None = None
    imatrix: bool = False


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """What will be done.

    Attributes:
        targets: in the order asked for.
        calibration: the text, should a target need it.
        calibration_asked: the user named a text or a recipe, so GGUF files use it too.
        algorithm: how codes are found.
        activation_memory_bytes: host memory for activations.
        has_overrides: the recipe has exceptions by tensor, which reach folders alone.
    """

    targets: tuple[Target, ...]
    calibration: CalibrationRecipe
    calibration_asked: bool
    algorithm: AlgorithmRecipe
    activation_memory_bytes: int
    has_overrides: bool = False

    @property
    def schemes(self) -> list[Scheme]:
        return [target for target in self.targets if isinstance(target, Scheme)]

    @property
    def calibrates(self) -> bool:
        """Whether text is run: a scheme is solved with it, or GGUF files are to use it."""
        solved = any(scheme.is_uniform for scheme in self.schemes)
        return solved or (self.calibration_asked and self.has_gguf)

    @property
    def has_gguf(self) -> bool:
        return len(self.schemes) < len(self.targets)


def job_of(request: QuantizeRequest) -> QuantizeJob:
    """Merges a request with its recipe: what the user gave wins.

    Raises:
        UsageError: neither formats nor recipe, an unknown name, or a number a format can't have.
    """
    if not request.formats and request.recipe is None:
        raise UsageError("No format was given.", "Add --to gguf:Q4_K_M, for instance.")
    recipe = load_recipe(request.recipe) if request.recipe else None
    base = recipe or Recipe(formats=request.formats)
    changes = {
        "formats": request.formats or base.formats,
        "bits": base.bits if request.bits is None else request.bits,
        "group_size": base.group_size if request.group_size is None else request.group_size,
        "symmetric": base.symmetric if request.symmetric is None else request.symmetric,
    }
    merged = base.model_copy(update=changes)
    schemes = iter(merged.schemes())
    gguf = set(merged.gguf_formats)
    targets = tuple(
        parse_target(name) if name in gguf else next(schemes) for name in merged.formats
    )
    _require_distinct(merged, targets)
    text = {
        "source": base.calibration.source if request.calibration is None else request.calibration,
        "samples": request.samples or base.calibration.samples,
        "length": request.length or base.calibration.length,
    }
    job = QuantizeJob(
        targets=tuple(dict.fromkeys(targets)),
        calibration=base.calibration.model_copy(update=text),
        calibration_asked=request.calibration is not None or recipe is not None,
        algorithm=base.algorithm,
        activation_memory_bytes=int(base.activation_memory_gib * 2**30),
        has_overrides=bool(base.overrides),
    )
    _require_use(request, job, merged.formats)
    return job


def _require_distinct(recipe: Recipe, targets: tuple[Target, ...]) -> None:
    """Refuses formats that differ by name, and that options make one."""
    plain: dict[Target, Target] = {}
    for name, target in zip(recipe.formats, targets, strict=True):
        named = parse_target(name)
        before = plain.setdefault(target, named)
        if before != named:
            raise UsageError(
                f"With {recipe.bits} bits, {before.name} and {named.name} are one format.",
                "Leave one of them out, or the bits.",
            )


def _require_use(request: QuantizeRequest, job: QuantizeJob, formats: tuple[str, ...]) -> None:
    """Refuses an option that none of the formats has a use for."""
    uniform = any(scheme.is_uniform for scheme in job.schemes)
    grouped = any(scheme.layout in GROUPED_LAYOUTS for scheme in job.schemes)
    run = job.calibrates and (uniform or not request.imatrix)
    for option, value, used in (
        ("--group-size", request.group_size, grouped),
        ("--bits", request.bits, uniform),
        ("--sym/--asym", request.symmetric, uniform),
        ("--calibration", request.calibration, run),
        ("--calibration-samples", request.samples, run),
        ("--calibration-length", request.length, run),
    ):
        if value is not None and not used:
            hint = "Leave it out."
            if option.startswith("--calibration") and job.has_gguf:
                hint = "Add --calibration balanced, or leave it out."
                if request.imatrix:
                    hint = "The files take their importance from --imatrix: leave one of them out."
            raise UsageError(f"{option} changes nothing about {', '.join(formats)}.", hint)
