"""The session: thinking apart, what enters the history, and what the cache saves."""

from __future__ import annotations

import pytest

from qwen3q.chat.session import (
    PLAIN_SAMPLING,
    THINKING_SAMPLING,
    ChatSession,
    Piece,
    SamplingChoice,
    _AnswerReader,
)
from qwen3q.errors import ModelError, UsageError
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.generate import Generator, StopReason
from qwen3q.llama.model import LlamaModel

SUM = "What is 413 + 389?"


@pytest.mark.parametrize(("question", "answer"), [(SUM, "802"), ("What is 57 + 266?", "323")])
def test_the_demo_adds_by_thinking(make_session, question, answer):
    session = make_session()
    pieces: list[Piece] = []
    turn = session.ask(question, pieces.append)
    assert turn.answer.endswith(f"= {answer}.")
    assert "carry" in turn.thinking
    assert turn.stop_reason is StopReason.END
    assert "".join(p.text for p in pieces if not p.thinking) == turn.answer
    assert "".join(p.text for p in pieces if p.thinking).strip() == turn.thinking
    assert 0 < turn.thinking_tokens < turn.timings.generated_tokens


def test_thinking_is_left_out_of_the_history(make_session):
    session = make_session(system="Be brief.")
    turn = session.ask(SUM)
    assert session.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": SUM},
        {"role": "assistant", "content": turn.answer},
    ]
    session.reset()
    assert [message["role"] for message in session.messages] == ["system"]


def test_without_thinking_there_is_none(make_session):
    turn = make_session(thinking=False).ask("Count from 5 to 9.")
    assert turn.thinking == ""
    assert turn.thinking_tokens == 0
    assert turn.answer == "5, 6, 7, 8, 9."


def test_the_next_turn_reuses_the_cache_and_says_the_same(make_session, demo_context):
    session = make_session()
    session.ask(SUM)
    second = session.ask("Which is larger, 418 or 77?")
    assert second.timings.cached_tokens >= 22
    fresh = make_session()
    fresh.messages = session.messages[:2]
    assert fresh.ask("Which is larger, 418 or 77?").answer == second.answer


def test_mode_defaults_are_qwens_and_can_be_overridden(make_session):
    session = make_session(choice=SamplingChoice(top_k=5, seed=7))
    assert (THINKING_SAMPLING.temperature, THINKING_SAMPLING.top_p) == (0.6, 0.95)
    assert (PLAIN_SAMPLING.temperature, PLAIN_SAMPLING.top_p) == (0.7, 0.8)
    assert session.sampling == THINKING_SAMPLING.__class__(0.6, 5, 0.95, 0.0, 0.0, 7)
    session.thinking = False
    assert session.sampling == PLAIN_SAMPLING.__class__(0.7, 5, 0.8, 0.0, 0.0, 7)
    zero = SamplingChoice(temperature=0.0, top_k=0, top_p=1.0).over(THINKING_SAMPLING)
    assert (zero.temperature, zero.top_k, zero.top_p) == (0.0, 0, 1.0)


def test_an_answer_stopped_while_thinking_is_forgotten(make_session):
    session = make_session()
    pieces: list[Piece] = []
    turn = session.ask(SUM, pieces.append, stop=lambda: len(pieces) > 3)
    assert turn.stop_reason is StopReason.INTERRUPTED
    assert (turn.answer, turn.kept) == ("", False)
    assert turn.thinking
    assert session.messages == []
    assert session.ask(SUM).answer.endswith("802.")


def test_an_answer_stopped_in_its_words_is_kept(make_session):
    session = make_session(thinking=False)
    pieces: list[Piece] = []
    turn = session.ask("Count from 5 to 9.", pieces.append, stop=lambda: len(pieces) > 3)
    assert turn.kept
    assert session.messages[-1] == {"role": "assistant", "content": turn.answer}


def test_max_tokens(make_session):
    turn = make_session(max_tokens=5).ask(SUM)
    assert turn.stop_reason is StopReason.LENGTH
    assert turn.timings.generated_tokens == 5


def test_a_conversation_that_fills_the_context_is_refused_and_unchanged(make_session):
    session = make_session(thinking=False)
    session.ask("Count from 5 to 9.")
    before = list(session.messages)
    with pytest.raises(
        UsageError, match=r"conversation has \d+ tokens, but the context holds 1024"
    ):
        session.ask("again and " * 600)
    assert session.messages == before
    assert session.ask("Count from 5 to 9.").kept


def test_running_into_the_end_of_the_context(demo_gguf):
    options = ContextOptions(context=256, threads=1, outputs=1)
    with LlamaModel(demo_gguf) as model, LlamaContext(model, options) as context:
        choice = SamplingChoice(temperature=1.0, seed=2)
        session = ChatSession(Generator(context), thinking=False, choice=choice)
        turn = session.ask("Repeat this sentence: " + "the sea " * 110)
    assert turn.stop_reason is StopReason.CONTEXT


def read(model: LlamaModel, text: str, *, thinking: bool) -> _AnswerReader:
    reader = _AnswerReader(model, None, thinking=thinking)
    for token in model.tokenize(text, parse_special=True):
        reader.feed(int(token))
    reader.finish()
    return reader


@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "answer"),
    [
        ("<think>\nhm ü\n</think>\n\nyes 東\n", False, "hm ü\n", "yes 東\n"),
        ("hm\n</think>\n\nyes", True, "hm\n", "yes"),
        ("\n\nyes", False, "", "yes"),
        ("<think>\nnever closed", False, "never closed", ""),
        ("<think>\n\n</think>\n\nyes", False, "", "yes"),
    ],
)
def test_tokens_are_sorted_into_thoughts_and_answer(demo_context, text, opened, thoughts, answer):
    """``opened``: templates of the Thinking releases write ``<think>`` themselves."""
    reader = read(demo_context.model, text, thinking=opened)
    assert "".join(reader.thoughts) == thoughts
    assert "".join(reader.answer) == answer


def test_a_file_without_template_is_no_chat_model(demo_gguf, tmp_path):
    path = tmp_path / "base.gguf"
    path.write_bytes(demo_gguf.read_bytes().replace(b".chat_template", b".chat_templatf"))
    with (
        LlamaModel(path) as model,
        LlamaContext(model, ContextOptions(context=256, threads=1)) as context,
        pytest.raises(ModelError, match="carries no chat template"),
    ):
        ChatSession(Generator(context))
