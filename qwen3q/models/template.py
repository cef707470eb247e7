"""A model's own chat template, rendered as transformers renders it but without trusting it.

Templates come with downloaded files, so they run in Jinja's immutable sandbox, see plain data
only, and are bounded in length, in loop rounds, in time and in what they produce on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from qwen3q.errors import ModelError
from qwen3q.models.template_bounds import Budget, budget
from qwen3q.models.template_sandbox import TemplateEnvironment

NO_TEMPLATE = (
    "Quantize it again from a folder that has one: chat_template.jinja, or chat_template in "
    "tokenizer_config.json."
)
"""The next step where a model has none."""

MAX_TEMPLATE_CHARS = 1 << 19
MAX_RENDERED_CHARS = 1 << 25


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str) -> None:
        """Compiles ``source``.

        Raises:
            ModelError: too long, or no valid Jinja.
        """
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(
                f"The chat template has {len(source)} characters; at most {MAX_TEMPLATE_CHARS}."
            )
        self.source = source
        try:
            self._template = TemplateEnvironment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"The chat template is no valid Jinja: line {error.lineno}: {error.message}."
            ) from None
        except RecursionError:
            raise ModelError("The chat template is nested too deeply.") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as the model was trained to read it.

        Args:
            messages: each with ``role`` and ``content``, and what else the template reads.
            tools: JSON schemas of functions that the model may call.
            enable_thinking: Qwen3's switch; None leaves it to the template.
            add_generation_prompt: end with the beginning of the assistant's answer.
            variables: more for the template, such as ``bos_token``.

        Raises:
            ModelError: the template refuses the conversation, fails, or exceeds a bound.
        """
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        data = _plain(
            variables
            | {
                "messages": list(messages),
                "tools": None if tools is None else list(tools),
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        token = budget.set(Budget(data))
        try:
            return _bounded_join(self._template.generate(**data))
        except jinja2.TemplateError as error:
            raise ModelError(f"The chat template fails: {error.message}.") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ModelError(f"The chat template fails: {error}.") from None
        except (RecursionError, MemoryError):
            raise ModelError("The chat template fails: it needs too much memory.") from None
        finally:
            budget.reset(token)


def _bounded_join(pieces: Iterable[str]) -> str:
    out, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_RENDERED_CHARS:
            raise jinja2.TemplateRuntimeError(
                f"it writes more than {MAX_RENDERED_CHARS} characters"
            )
        out.append(piece)
    return "".join(out)


def _plain(value: Any) -> Any:
    """A copy made of JSON's types alone, so that a template sees no methods of ours."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    raise ModelError(f"A chat message holds a {type(value).__name__}, which is no JSON.")
