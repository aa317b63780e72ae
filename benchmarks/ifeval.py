"""IFEval's strict accuracy of answers, by lm-eval's own checkers (``pip install lm-eval langdetect nltk immutabledict``).

The checkers count sentences with NLTK's Punkt, whose English model NLTK downloads. Where that cannot be, a Punkt model is trained on the
English that it is given, by NLTK's own trainer; which one it was is told with the figures (it decides one instruction in sixteen).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_ifeval(file: Path) -> list[dict[str, Any]]:
    """The questions: ``prompt``, ``instruction_id_list``, ``kwargs``."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def punkt(texts: Sequence[str]) -> str:
    """Make NLTK find an English Punkt model; says which. Before the checkers are imported: they would download one, or fail."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
        return "NLTK's"
    except LookupError:
        root = Path(tempfile.mkdtemp())  # for its owner alone, which NLTK asks for
        (root / "tokenizers" / "punkt_tab").mkdir(parents=True)
        nltk.data.path.insert(0, str(root))
        from nltk.tokenize import punkt as nltk_punkt

        trainer = nltk_punkt.PunktTrainer()
        trainer.train("\n".join(texts))
        nltk_punkt.save_punkt_params(trainer.get_params(), dir=str(root / "tokenizers" / "punkt_tab" / "english"))
        return f"trained here on {sum(map(len, texts)):,} characters"


def strict(questions: Sequence[dict[str, Any]], answers: Sequence[str]) -> dict[str, float]:
    """Shares of prompts all of whose instructions were followed, and of instructions."""
    from lm_eval.tasks.ifeval import utils

    whole, single = [], []
    for question, answer in zip(questions, answers, strict=True):
        asked = utils.InputExample(question["key"], question["instruction_id_list"], question["prompt"], question["kwargs"])
        found = utils.test_instruction_following_strict(asked, answer)
        whole.append(found.follow_all_instructions)
        single.extend(found.follow_instruction_list)
    return {"prompts": sum(whole) / len(whole), "instructions": sum(single) / len(single)}
