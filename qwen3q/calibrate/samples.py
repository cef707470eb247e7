"""A calibration sample: raw text, or a conversation; and the records that one is read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3q.errors import UsageError

COLUMNS = ("messages", "conversations", "text")
"""Where a record's sample is looked for, in this order."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Roles in OpenAI's spelling and in ShareGPT's."""

_RECORD = 'A record is {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}.'
THINK_START = "<think>"
THINK_END = "</think>"

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One text or conversation.

    Attributes:
        text: raw text; None if there are messages.
        messages: role, content, and for an assistant perhaps reasoning_content and tool_calls.
        tools: JSON schemas of the functions that the conversation may call.
        kind: chat, prose, code, mathematics, tools; empty in a user's data.
        language: ISO 639-1; empty in a user's data.
        id: its name in its file; empty in a user's data.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    kind: str = ""
    language: str = ""
    id: str = ""

    @property
    def has_answer(self) -> bool:
        """Whether the conversation ends with the assistant."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    @property
    def thinks(self) -> bool:
        """Whether its last answer is thought out first."""
        return self.has_answer and bool(self.messages[-1].get("reasoning_content"))


def parse_record(record: Any, where: str, column: str | None = None) -> Sample:
    """The sample that a record of a user's data holds.

    Args:
        record: an object with ``text``, or with ``messages`` or ``conversations`` in OpenAI's or
            ShareGPT's form.
        where: file and line, for errors.
        column: the field to read; None for the first of ``COLUMNS`` that is there.

    Raises:
        UsageError: no such field, one that holds neither text nor a conversation, or a message
            without role or content.
    """
    if not isinstance(record, Mapping):
        raise UsageError(f"{where} is no JSON object.", "Each line holds one object.")
    given = column
    if column is None:
        column = next((name for name in COLUMNS if record.get(name) is not None), None)
    if column is None or column not in record:
        wanted = column or "text, messages or conversations"
        null = [name for name in COLUMNS if column is None and name in record]
        names = ", ".join(map(str, record)) or "none"
        has = f"its {null[0]} is null" if null else f"it has {names}"
        raise UsageError(f"{where} has no {wanted}; {has}.", _RECORD)
    value = record[column]
    if given is None and column != "text" and isinstance(value, str):
        raise UsageError(f"{where}: {column} is text, not a list of messages.", _RECORD)
    kind, language, id_ = (str(record.get(tag) or "") for tag in ("kind", "language", "id"))
    if isinstance(value, str):
        return Sample(text=value, kind=kind, language=language, id=id_)
    if isinstance(value, Sequence) and value:
        tools = record.get("tools") or ()
        if not isinstance(tools, Sequence) or isinstance(tools, str):
            raise UsageError(f"{where}: tools is no list of functions.", _RECORD)
        messages = tuple(_message(item, where) for item in value)
        return Sample(None, messages, tuple(tools), kind, language, id_)
    raise UsageError(f"{where}: {column} holds neither text nor a conversation.", _RECORD)


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise UsageError(f"{where}: a message is no object.", _RECORD)
    name = item.get("role", item.get("from"))
    if not isinstance(name, str) or name not in ROLES:
        raise UsageError(
            f"{where}: a message's role is {name!r}; known are {', '.join(ROLES)}.", _RECORD
        )
    content = item.get("content", item.get("value"))
    if content is None and not (item.get("tool_calls") or item.get("reasoning_content")):
        raise UsageError(f"{where}: a message of role {name} has no content.", _RECORD)
    message: dict[str, Any] = {"role": ROLES[name], "content": _content(content, where)}
    if message["role"] == "assistant":
        message |= _thinking(message["content"], item.get("reasoning_content"))
        if item.get("tool_calls"):
            message["tool_calls"] = _tool_calls(item["tool_calls"], where)
    return message


def _tool_calls(value: Any, where: str) -> Sequence[Mapping[str, Any]]:
    """Calls in OpenAI's form: each a name and arguments, as an object or as JSON text, bare or
    under ``function``."""
    calls = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if (
            not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), (Mapping, str))
        ):
            raise UsageError(
                f"{where}: a tool call has no name or no arguments.",
                'A call is {"function": {"name": "...", "arguments": {...}}}, in a list.',
            )
    return list(calls)


def _content(value: Any, where: str) -> str:
    """Text, also from OpenAI's list of parts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(part, Mapping) for part in value):
        return "".join(str(part.get("text") or "") for part in value)
    raise UsageError(f"{where}: a message's content is no text.", _RECORD)


def _thinking(content: str, reasoning: Any) -> dict[str, str]:
    """Thinking apart from the answer, when it stands in the answer between its tags."""
    if isinstance(reasoning, str) and reasoning.strip():
        return {"reasoning_content": reasoning.strip()}
    if not content.startswith(THINK_START) or THINK_END not in content:
        return {}
    thinking, _, answer = content.removeprefix(THINK_START).partition(THINK_END)
    parts = {"content": answer.lstrip("\n")}
    return parts | ({"reasoning_content": thinking.strip()} if thinking.strip() else {})
