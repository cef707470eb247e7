"""Writes ``balanced/worked.jsonl``: exercises with worked solutions, tables and tool calls.

Deterministic: the same file comes out each time, and a test holds the committed one against it.
Run from anywhere: ``python calibration_data/make_worked.py``.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "balanced" / "worked.jsonl"
SEED = 20250429
EACH = 7
"""Samples per family."""

Sample = dict[str, Any]
NAMES = [
    *("Ada", "Bo", "Chiara", "Dev", "Elif", "Femi", "Greta", "Hugo"),
    *("Inés", "Jun", "Kofi", "Lena", "Mirza", "Noor", "Otto", "Pia"),
]
MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]


def solved(kind: str, question: str, answer: str, thinking: str = "") -> Sample:
    """One question and its answer, with the thinking before it if there is any."""
    reply = {"role": "assistant", "content": answer}
    if thinking:
        reply["reasoning_content"] = thinking
    return {
        "kind": kind,
        "language": "en",
        "messages": [{"role": "user", "content": question}, reply],
    }


def multiplication(rng: random.Random, index: int) -> Sample:
    """Partial products by place value, checked modulo nine."""
    a, b = rng.randint(213, 987), rng.randint(23, 897)
    asked = rng.choice(
        [
            "What is {a} × {b}?",
            "Compute {a} times {b} by hand.",
            "{a}*{b}=?",
            "Multiply {a} by {b}.",
        ]
    ).format(a=a, b=b)
    lines, running = [], 0
    for place, digit in enumerate(reversed(str(b))):
        part = a * int(digit) * 10**place
        if part:
            running += part
            lines.append(f"{a} × {int(digit) * 10**place} = {part}, sum so far {running}.")
    rest = (a % 9, b % 9, a * b % 9)
    lines.append(f"Mod 9: {rest[0]} · {rest[1]} = {rest[0] * rest[1]} ≡ {rest[2]}.")
    lines.append(f"And {a * b} ≡ {rest[2]}, fits.")
    return solved("mathematics", asked, f"{a} × {b} = **{a * b}**", "\n".join(lines))


def euclid(rng: random.Random, index: int) -> Sample:
    """The greatest common divisor by the Euclidean algorithm."""
    common = rng.randint(3, 29)
    a, b = sorted((common * rng.randint(21, 90), common * rng.randint(12, 70)), reverse=True)
    steps, x, y = [], a, b
    while y:
        steps.append(f"{x} = {x // y}·{y} + {x % y}")
        x, y = y, x % y
    lcm = a * b // x
    answer = (
        f"gcd({a}, {b}) = **{x}**, the last remainder before zero.\n\n"
        f"So lcm({a}, {b}) = {a}·{b}/{x} = {lcm}."
    )
    return solved("mathematics", f"gcd and lcm of {a} and {b}?", answer, "\n".join(steps))


def linear_system(rng: random.Random, index: int) -> Sample:
    """Two linear equations with integer solutions, told as a purchase."""
    goods = ["notebooks", "pens", "apples", "tickets", "candles", "stamps", "mugs", "lemons"]
    first, second = rng.sample(goods, 2)
    x, y = rng.randint(2, 14), rng.randint(2, 14)
    while True:
        a, b, c, d = (rng.randint(1, 7) for _ in range(4))
        if determinant := a * d - b * c:
            break
    s, t = a * x + b * y, c * x + d * y
    buyer, other = rng.sample(NAMES, 2)
    question = (
        f"{buyer} pays {s} for {a} {first} and {b} {second}. {other} pays {t} for {c} {first} "
        f"and {d} {second}. What does one of each cost?"
    )
    thinking = (
        f"Let p, q be the prices. {a}p + {b}q = {s}; {c}p + {d}q = {t}.\n"
        f"Determinant {a}·{d} − {b}·{c} = {determinant}.\n"
        f"p = ({s}·{d} − {b}·{t})/{determinant} = {s * d - b * t}/{determinant} = {x}.\n"
        f"q = ({a}·{t} − {c}·{s})/{determinant} = {a * t - c * s}/{determinant} = {y}.\n"
        f"Check: {a * x} + {b * y} = {s}, {c * x} + {d * y} = {t}."
    )
    answer = f"{first.capitalize()}: **{x}** each. {second.capitalize()}: **{y}** each."
    return solved("mathematics", question, answer, thinking)


def bases(rng: random.Random, index: int) -> Sample:
    """A number in another base, by repeated division."""
    base = (2, 16, 8, 3, 7, 12, 5)[index]
    number = rng.randint(150, 60_000 if base > 8 else 900)
    digits, rows, rest = [], [], number
    while rest:
        digits.append("0123456789ab"[rest % base] if base < 13 else f"{rest % base:x}")
        rows.append(f"| {rest} | {rest // base} | {digits[-1]} |")
        rest //= base
    table = "\n".join([f"| n | n // {base} | digit |", "|---:|---:|---|", *rows])
    text = "".join(reversed(digits))
    return solved(
        "mathematics",
        rng.choice(
            [
                f"Convert {number} to base {base} and show the divisions.",
                f"{number} in base {base}, as a table please",
                f"Write {number} with base-{base} digits, step by step.",
            ]
        ),
        f"{table}\n\nFrom the bottom up: **{text}**",
    )


def calendar(rng: random.Random, index: int) -> Sample:
    """Days between two dates, month by month."""
    start = datetime.date(rng.randint(2023, 2029), rng.randint(1, 7), rng.randint(2, 27))
    end = start + datetime.timedelta(days=rng.randint(70, 200))
    parts, at = [], start
    while (at.year, at.month) != (end.year, end.month):
        following = (at.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
        parts.append(((following - at).days, MONTHS[at.month - 1]))
        at = following
    parts.append(((end - at).days, MONTHS[end.month - 1]))
    days = (end - start).days
    thinking = f"From the {start.day}: "
    thinking += ", ".join(f"{name[:3]} {count}" for count, name in parts)
    thinking += f"\nTotal {' + '.join(str(count) for count, _ in parts)} = {days}."
    thinking += f"\n{days} = 7·{days // 7} + {days % 7}; {start:%A} plus {days % 7} is {end:%A}."
    question = (
        f"{start.isoformat()} is a {start:%A}. How many days later is "
        f"{end.isoformat()}, on which weekday?"
    )
    return solved("mathematics", question, f"**{days} days**, and it is a **{end:%A}**.", thinking)


TABLES: list[tuple[str, str, list[str], tuple[int, int]]] = [
    ("Harvest by field", "tonnes", ["Northacre", "Pond", "Long Strip", "Glebe", "Quarry"], (3, 48)),
    ("Visitors per wing", "people", ["Antiquity", "Maps", "Porcelain", "Clocks"], (120, 2900)),
    ("Rain gauge", "mm", ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat"], (0, 31)),
    ("Build times", "seconds", ["parser", "linker", "docs", "tests", "bundle"], (11, 640)),
    ("Votes", "votes", ["Option A", "Option B", "Option C", "Abstained"], (40, 900)),
    ("Fuel used", "litres", ["Tug 1", "Tug 2", "Ferry", "Pilot boat", "Dredger"], (90, 4100)),
    ("Loans by shelf", "books", ["Crime", "Travel", "Poetry", "Science", "Comics"], (5, 400)),
]


def table_question(rng: random.Random, index: int) -> Sample:
    """A table of numbers: total, largest, share and median."""
    title, unit, rows, (low, high) = TABLES[index]
    values = [rng.randint(low, high) for _ in rows]
    while len(set(values)) < len(values):
        values = [rng.randint(low, high) for _ in rows]
    total, top = sum(values), max(range(len(rows)), key=values.__getitem__)
    ranked = sorted(zip(values, rows, strict=True), reverse=True)
    middle = sorted(values)
    half = len(middle) // 2
    median = middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2
    body = "\n".join(f"| {row} | {value} |" for row, value in zip(rows, values, strict=True))
    question = (
        f"{title}\n\n| | {unit} |\n|---|---:|\n{body}\n\n"
        "Total, leader with its share, median, and the ranking."
    )
    answer = (
        f"- Total: {' + '.join(map(str, values))} = **{total}** {unit}\n"
        f"- Leader: **{rows[top]}**, {values[top]} of {total} = "
        f"{100 * values[top] / total:.1f} %\n"
        f"- Median: {median:g}\n"
        f"- Ranking: {' > '.join(f'{row} ({value})' for value, row in ranked)}"
    )
    return solved("mathematics", question, answer)


RECORDS: list[tuple[tuple[str, str], dict[str, str]]] = [
    (("sku", "colour"), {"stock": "int", "price": "float"}),
    (("station", "line"), {"platforms": "int", "lift": "bool"}),
    (("student", "course"), {"points": "float", "passed": "bool"}),
    (("vessel", "flag"), {"length_m": "float", "crew": "int", "docked": "bool"}),
    (("sensor", "room"), {"celsius": "float", "online": "bool"}),
    (("title", "shelf"), {"copies": "int", "weight_g": "float"}),
    (("host", "region"), {"cores": "int", "load": "float", "spare": "bool"}),
]
WORDS = [
    *("amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "heron"),
    *("indigo", "juniper", "kelp", "larch", "marble", "nettle", "ochre", "pine"),
]


def csv_to_json(rng: random.Random, index: int) -> Sample:
    """Delimited text into JSON, with types and missing values handled."""
    (first, second), types = RECORDS[index]
    records: list[dict[str, Any]] = []
    for one, two in zip(rng.sample(WORDS, 4), rng.sample(WORDS, 4), strict=True):
        record: dict[str, Any] = {first: one, second: two}
        for field, kind in types.items():
            number = rng.randint(1, 900)
            values = {"int": number, "float": number / 8, "bool": number % 2 == 0}
            record[field] = None if rng.random() < 0.15 else values[kind]
        records.append(record)
    separator = rng.choice([",", ";", "\t"])

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "" if value is None else str(value)

    lines = [separator.join((first, second, *types))]
    lines += [separator.join(cell(value) for value in record.values()) for record in records]
    question = "To JSON; yes and no are booleans, empty is null:\n\n```\n" + "\n".join(lines)
    return solved("code", question + "\n```", json.dumps(records, indent=2 if index % 2 else None))


def ranking(rng: random.Random, index: int) -> Sample:
    """Weighted marks, ranked, with the thinking written out."""
    people = rng.sample(NAMES, 4)
    weights = rng.choice([(50, 30, 20), (40, 40, 20), (60, 25, 15), (45, 35, 20)])
    labels = rng.choice(
        [("essay", "talk", "quiz"), ("price", "quality", "delivery"), ("speed", "safety", "cost")]
    )
    marks = {person: [rng.randint(41, 99) for _ in labels] for person in people}
    scores = {
        person: sum(w * m for w, m in zip(weights, row, strict=True)) / 100
        for person, row in marks.items()
    }
    listed = "; ".join(f"{person} {'/'.join(map(str, row))}" for person, row in marks.items())
    weighting = ", ".join(f"{label} {w} %" for label, w in zip(labels, weights, strict=True))
    thinking = "\n".join(
        f"{person}: "
        + " + ".join(f"{w * m / 100:g}" for w, m in zip(weights, row, strict=True))
        + f" = {scores[person]:g}"
        for person, row in marks.items()
    )
    order = sorted(people, key=scores.__getitem__, reverse=True)
    gap = scores[order[0]] - scores[order[1]]
    answer = "\n".join(f"{at}. {person}: {scores[person]:g}" for at, person in enumerate(order, 1))
    return solved(
        "mathematics",
        f"Weights: {weighting}. Marks in that order: {listed}. Who comes first, and by how much?",
        f"{answer}\n\n**{order[0]}** leads by {gap:g} points.",
        thinking,
    )


TOOLS: list[tuple[str, dict[str, str], str, Callable[[random.Random], dict[str, Any]]]] = [
    (
        "stock_quote",
        {"symbol": "string", "exchange": "string"},
        "Price of {symbol} on {exchange}?",
        lambda r: {"symbol": "".join(r.sample("ABCDEFGHKLMNPRST", 4)), "exchange": "XETRA"},
    ),
    (
        "set_timer",
        {"minutes": "integer", "label": "string"},
        "{label} in {minutes} minutes, wake me",
        lambda r: {"minutes": r.randint(3, 90), "label": "bread out of the oven"},
    ),
    (
        "ticket_update",
        {"id": "integer", "state": "string", "assignee": "string"},
        "Ticket {id} goes to {assignee} and is now {state}.",
        lambda r: {"id": r.randint(1000, 9999), "state": "blocked", "assignee": r.choice(NAMES)},
    ),
    (
        "distance",
        {"from_lat": "number", "from_lon": "number", "to_lat": "number", "to_lon": "number"},
        "How far is it from ({from_lat}, {from_lon}) to ({to_lat}, {to_lon})?",
        lambda r: {
            "from_lat": round(r.uniform(-60, 60), 3),
            "from_lon": round(r.uniform(-170, 170), 3),
            "to_lat": round(r.uniform(-60, 60), 3),
            "to_lon": round(r.uniform(-170, 170), 3),
        },
    ),
    (
        "resize_image",
        {"path": "string", "width": "integer", "quality": "integer"},
        "{path} to {width} px wide at quality {quality}",
        lambda r: {
            "path": f"/photos/img_{r.randint(100, 999)}.jpg",
            "width": r.choice([480, 960, 1600]),
            "quality": r.randint(60, 95),
        },
    ),
    (
        "send_payment",
        {"payee": "string", "cents": "integer", "reference": "string"},
        "Send {payee} {cents} cents, reference {reference}",
        lambda r: {
            "payee": r.choice(NAMES),
            "cents": r.randint(150, 90_000),
            "reference": f"INV-{r.randint(10, 99)}-{r.randint(1000, 9999)}",
        },
    ),
    (
        "grep",
        {"pattern": "string", "folder": "string", "max_results": "integer"},
        "Where in {folder} is {pattern}? {max_results} hits are enough",
        lambda r: {
            "pattern": r.choice(["TODO", "retry_after", "class Ledger"]),
            "folder": "src/billing",
            "max_results": r.randint(5, 40),
        },
    ),
]


def tool_call(rng: random.Random, index: int) -> Sample:
    """One call with typed arguments."""
    name, types, question, draw = TOOLS[index]
    arguments = draw(rng)
    properties = {field: {"type": type_} for field, type_ in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "kind": "tools",
        "language": "en",
        "tools": [{"type": "function", "function": {"name": name, "parameters": parameters}}],
        "messages": [
            {"role": "user", "content": question.format(**arguments)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
    }


FAMILIES: list[Callable[[random.Random, int], Sample]] = [
    multiplication,
    euclid,
    linear_system,
    bases,
    calendar,
    table_question,
    csv_to_json,
    ranking,
    tool_call,
]


def worked() -> Iterator[Sample]:
    """Every sample in file order, each with its id first."""
    for family in FAMILIES:
        rng = random.Random(f"{SEED}-{family.__name__}")
        for index in range(EACH):
            yield {"id": f"{family.__name__}-{index}"} | family(rng, index)


def encode() -> str:
    """The file's text: one JSON object per line."""
    lines = (json.dumps(s, ensure_ascii=False, separators=(",", ":")) for s in worked())
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    TARGET.write_text(encode(), encoding="utf-8")
