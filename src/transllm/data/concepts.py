"""Word lists by concept: the map of Concepticon (List et al., concepticon.clld.org) that the package ``pysem`` carries.

It tells for some forty languages which concepts a gloss stands for. A gloss of English and one of the target language that stand for the
same concept translate each other: 2,200 pairs of everyday words for Spanish, 1,600 for Portuguese, 860 for Arabic, 650 for Turkish.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator

from transllm.data.members import Member
from transllm.data.readers import Drop, Row
from transllm.errors import DataError

_REMARK = re.compile(r"\s*[(\[][^)\]]*[)\]]")
_Concept = tuple[str, str]  # its number and the part of speech: "the work" and "to work" are one concept


def read_concepts(member: Member, language: str, drop: Drop) -> Iterator[Row]:
    """Pairs of words: of each concept the gloss that most lists have, in both languages.

    Args:
        member: JSON ``{language: {gloss: [[concept, its name, lists, part of speech, ...], ...]}}``, plain or alone in a zip file.
        language: code of the target language.
        drop: is told of concepts that the target language has no gloss for.

    Raises:
        DataError: the file is of another form, or does not know the language.
    """
    glosses = _glosses(member)
    for code in ("en", language):
        if code not in glosses:
            raise DataError(f"{member.name} has no words of the language '{code}'. It has: {', '.join(sorted(glosses))}.")
    try:
        english, target = (_by_concept(glosses[code]) for code in ("en", language))
    except (TypeError, ValueError, LookupError, AttributeError) as problem:
        raise DataError(f"{member.name} is not a map of Concepticon: wanted is "
                        "{language: {gloss: [[concept, name, lists, part of speech], ...]}}.") from problem
    for concept, words in english.items():
        place = f"{member.name}, concept {concept[0]}"
        if concept in target:
            yield Row((_most_used(words), _most_used(target[concept])), place)
        else:
            drop("no translation", place)


def _glosses(member: Member) -> dict[str, dict[str, list[list[object]]]]:
    raw = member.read()
    try:
        if zipfile.is_zipfile(io.BytesIO(raw)):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                (name,) = archive.namelist()
                raw = archive.read(name)
        found = json.loads(raw)
    except (ValueError, zipfile.BadZipFile, RecursionError) as problem:
        raise DataError(f"{member.name} is neither JSON nor a zip file with one JSON file in it ({problem}). "
                        "Fetch it again, or set 'format'.") from problem
    if not isinstance(found, dict) or not all(isinstance(words, dict) for words in found.values()):
        raise DataError(f"{member.name} is not a map of Concepticon: its first keys are languages, and those of each language are glosses.")
    return found


def _by_concept(glosses: dict[str, list[list[object]]]) -> dict[_Concept, Counter[str]]:
    """How many lists use which word for a concept."""
    found: dict[_Concept, Counter[str]] = defaultdict(Counter)
    for gloss, concepts in glosses.items():
        word = _REMARK.sub("", gloss.split(",")[0].split("/")[0].split(";")[0]).strip(" ?*-")
        for concept, _, lists, part_of_speech, *_ in concepts if word else ():
            found[str(concept), str(part_of_speech)][word] += int(str(lists))
    return found


def _most_used(words: Counter[str]) -> str:
    """The word of most lists, however they write it; of its forms the commonest, and small letters where two are as common. Some lists
    are in capitals throughout."""
    together: Counter[str] = Counter()
    for word, lists in words.items():
        together[word.casefold()] += lists
    most = max(together, key=lambda word: (together[word], -len(word), word))
    forms = [word for word in words if word.casefold() == most]
    best = max(forms, key=lambda word: (not _in_capitals(word), words[word], word.islower(), word))
    return best.lower() if _in_capitals(best) else best


def _in_capitals(word: str) -> bool:
    return word.isupper() and len(word) > 1
