"""Catalogues of software in two languages: gettext (.mo, .po) and JSON files of one file a language.

Their messages are short, modern and everyday, which the large free corpora often are not. Text comes out as it stands;
what belongs to a program and not to a language (accelerators, markup) is cleaned by ``filters.clean_message``.
"""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from transllm.data.members import Member
from transllm.data.readers import Drop, Row, read_whole_json
from transllm.errors import DataError

_SYMBOL = re.compile(r"[A-Za-z0-9]+(?:[_.:-][A-Za-z0-9]+)+|[a-z0-9_]+")
_DEFAULT = re.compile(r'Default:\s*"(.*)"\s*$')


def read_catalog(english: Member, target: Member, drop: Drop) -> Iterator[Row]:
    """JSON catalogues: texts at the same key path belong together."""
    left = dict(_leaves(read_whole_json(english), ""))
    right = dict(_leaves(read_whole_json(target), ""))
    for path, text in right.items():
        place = f"{target.name}, {path}"
        if path in left:
            yield Row((left[path], text), place, message=True)
        else:
            drop("no English text", place)
    for path in left.keys() - right.keys():
        drop("no translation", f"{english.name}, {path}")


def read_gettext(english: Member | None, target: Member, drop: Drop) -> Iterator[Row]:
    """Messages of a .mo or .po file.

    Args:
        english: the English catalogue, where there is one: programs whose message ids are symbols keep their English there.
    """
    messages = _messages(target)
    originals = _messages(english) if english is not None else {}
    for (context, identity), translation in messages.items():
        if not identity:
            continue  # the header
        place = f"{target.name}, '{identity[:40]}'"
        own = originals.get((context, identity))
        text = (own.text or own.default if own else "") or translation.default or identity
        if translation.fuzzy:
            drop("fuzzy translation", place)
        elif not translation.text:
            drop("no translation", place)
        elif text == identity and _SYMBOL.fullmatch(identity) and translation.text != identity:
            # 'label_save' is a name for a message, not English; one plain lower-case word could be either, and is no loss.
            drop("message id is not text", place)
        else:
            yield Row((text, translation.text), place, message=True)


@dataclass(slots=True)
class _Message:
    """One translation; ``default`` is the English text that a .po comment states for a symbolic id."""

    text: str = ""
    default: str = ""
    fuzzy: bool = False


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """(key path, text) of all texts in nested objects and lists."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inside in value.items():
            yield from _leaves(inside, f"{path}/{key}")
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            yield from _leaves(inside, f"{path}/{number}")


def _messages(member: Member) -> dict[tuple[str, str], _Message]:
    """(context, message id) -> message. Of a plural the first form stands for the id (which is the singular)."""
    return _read_mo(member) if member.ending == ".mo" else _read_po(member)


def _read_mo(member: Member) -> dict[tuple[str, str], _Message]:
    """The binary form (GNU gettext manual, "The Format of GNU MO Files")."""
    raw = member.read()
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(raw[:4])
    if order is None:
        raise DataError(f"{member.name} is not a .mo file (it does not begin with the magic number). Check 'pattern', or set 'format'.")
    try:
        number, at_ids, at_texts = struct.unpack_from(f"{order}3I", raw, 8)
        pairs: list[tuple[str, str]] = []
        for index in range(number):
            both: list[str] = []
            for table in (at_ids, at_texts):
                length, start = struct.unpack_from(f"{order}2I", raw, table + 8 * index)
                if start + length > len(raw):
                    raise DataError(f"{member.name} is cut short at message {index}. Fetch it again.")
                both.append(raw[start:start + length].decode("utf-8"))
            pairs.append((both[0], both[1]))
    except (struct.error, UnicodeDecodeError) as problem:
        raise DataError(f"{member.name} is damaged or not in UTF-8 ({problem}). "
                        "Fetch it again, or convert it with msgconv -t UTF-8.") from problem
    found: dict[tuple[str, str], _Message] = {}
    for identity, text in pairs:
        context, _, rest = identity.rpartition("\x04")
        found[context, rest.split("\x00")[0]] = _Message(text.split("\x00")[0])
    return found


@dataclass(slots=True)
class _Entry:
    """A .po entry as it is being read: keyword -> text."""

    parts: dict[str, str] = field(default_factory=dict)
    comments: str = ""
    fuzzy: bool = False


def _read_po(member: Member) -> dict[tuple[str, str], _Message]:
    """The text form. Obsolete entries (``#~``) are left out: they are not part of the catalogue."""
    found: dict[tuple[str, str], _Message] = {}
    entry, keyword = _Entry(), ""

    def finish() -> None:
        if "msgid" in entry.parts:
            default = _DEFAULT.search(entry.comments)
            text = entry.parts.get("msgstr", entry.parts.get("msgstr[0]", ""))
            english = default[1].replace('\\"', '"') if default else ""
            found[entry.parts.get("msgctxt", ""), entry.parts["msgid"]] = _Message(text, english, entry.fuzzy)

    for number, line in member.lines():
        line = line.strip()
        if line.startswith("#~"):
            continue
        if not line or line.startswith("#"):
            if any(part.startswith("msgstr") for part in entry.parts):
                finish()
                entry, keyword = _Entry(), ""
            if line.startswith("#."):
                entry.comments += (" " if entry.comments else "") + line[2:].strip()
            entry.fuzzy |= line.startswith("#,") and "fuzzy" in line
            continue
        word, _, rest = line.partition(" ") if not line.startswith('"') else (keyword, "", line)
        if not line.startswith('"') and word in ("msgctxt", "msgid") and any(part.startswith("msgstr") for part in entry.parts):
            finish()  # no empty line between two entries
            entry = _Entry()
        if not re.fullmatch(r"msgctxt|msgid|msgid_plural|msgstr(\[\d+\])?", word):
            raise DataError(f"{member.name}, line {number} is not gettext: '{line[:40]}'. Check the file with msgfmt -c.")
        keyword = word
        entry.parts[keyword] = entry.parts.get(keyword, "") + _unquote(rest.strip(), member.name, number)
    finish()
    return found


def _unquote(text: str, name: str, number: int) -> str:
    try:
        value = ast.literal_eval(text) if len(text) >= 2 and text[0] == text[-1] == '"' else None
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, str):
        raise DataError(f"{name}, line {number} has broken quotes: {text[:40]}. Check the file with msgfmt -c.")
    return value
