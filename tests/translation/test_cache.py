"""What was translated is not translated again, by whichever process, after whichever end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from transllm.errors import DataError
from transllm.progress import Silent
from transllm.translation import TextTranslator, Translation, TranslationCache
from transllm.translation.masks import MaskForm
from transllm.translation.translator import Direction


class Upper:
    """Writes in capitals, and fails after so many sentences."""

    name = "upper"
    masks: MaskForm | None = None
    longest = 100
    whole_lines = False

    def __init__(self, weights: str = "a", most: int = 1000) -> None:
        self.identity: dict[str, Any] = {"weights": weights}
        self.seen: list[str] = []
        self._most = most

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        for index, sentence in enumerate(sentences):
            if len(self.seen) == self._most:
                raise DataError("no more")
            self.seen.append(sentence)
            yield index, Translation(sentence.upper(), sentence == "cut.")

    def close(self) -> None: ...


def run(path: Path, translator: Upper, texts: Sequence[str], to: Direction = "target") -> list[Translation]:
    return TextTranslator(translator, cache=TranslationCache(path)).translate(texts, to=to, progress=Silent(), label="")


def test_a_rerun_translates_nothing_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "translations.sqlite"
    first, texts = Upper(), ["one. two.", "cut.", "- one.", "half a pair \ud800."]
    made = run(path, first, texts[:3])
    assert first.seen == ["one.", "two.", "cut."] and [one.cut for one in made] == [False, True, False]
    again = Upper()
    assert run(path, again, texts[:3]) == made and again.seen == []
    run(path, again, texts)
    assert len(again.seen) == 1, "only what is new"


@pytest.mark.parametrize(("other", "to"), [(Upper("b"), "target"), (Upper(), "english")])
def test_other_weights_and_the_other_direction_are_other_translations(tmp_path: Path, other: Upper, to: Direction) -> None:
    run(tmp_path / "c", Upper(), ["one."])
    run(tmp_path / "c", other, ["one."], to)
    assert other.seen == ["one."]


def test_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no more"):
        run(tmp_path / "c", Upper(most=2), ["one. two. three."])
    again = Upper()
    run(tmp_path / "c", again, ["one. two. three."])
    assert again.seen == ["three."]


def test_a_file_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("This is no database at all. " * 100, encoding="utf-8")
    with pytest.raises(DataError, match=r"c'.*Take the file away"):
        run(tmp_path / "c", Upper(), ["one."])


_WRITER = """
import sys, time
from pathlib import Path
from transllm.translation import Translation, TranslationCache
from transllm.translation import cache as module
module._SECONDS = 0.0
class Kind:
    name, identity = "kind", {"who": sys.argv[2]}
cache, kind = TranslationCache(Path(sys.argv[1])), Kind()
texts = [str(number) for number in range(int(sys.argv[3]))]
def slowly():
    for number, text in enumerate(texts):
        time.sleep(0.02)
        yield number, Translation(text * 50, False)
for index, _ in cache.keep(texts, slowly(), to="target", translator=kind):
    if index == 5:
        print("going", flush=True)
"""


def _start(path: Path, who: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _WRITER, str(path), who, str(count)], stdout=subprocess.PIPE, text=True)


def test_two_processes_and_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "c"
    killed, other = _start(path, "killed", 100_000), _start(path, "other", 30)
    for process in (killed, other):
        assert process.stdout is not None and process.stdout.readline() == "going\n"
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and other.wait() == 0
    for process in (killed, other):
        assert process.stdout is not None
        process.stdout.close()

    class Kind:
        name = "kind"
        identity: dict[str, Any] = {"who": "other"}  # noqa: RUF012

    found = TranslationCache(path).get([str(number) for number in range(30)], to="target", translator=Kind())  # type: ignore[arg-type]
    assert len(found) == 30
    Kind.identity = {"who": "killed"}
    found = TranslationCache(path).get([str(number) for number in range(5)], to="target", translator=Kind())  # type: ignore[arg-type]
    assert found["3"] == Translation("3" * 50, False), "what was written before the kill"
