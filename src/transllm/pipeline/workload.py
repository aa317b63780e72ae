"""How much a recipe asks of each stage: steps and tokens, as far as they are known before the run, and lengths that are assumed.

What is assumed stands here and nowhere else. The lengths are those of the demo's runs and of the corpora that recipes name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from transllm.data.prompts import seed_prompts
from transllm.recipe.schema import Recipe, TrainStage

ANSWER = 100
"""Tokens of an answer at least, where the recipe's limit leaves it so many; at most it is as long as the limit."""
PROMPT = 45
"""Tokens of a question in the chat template."""
SENTENCE = 25
DOCUMENT, SIDE = 300, 40
"""Tokens of a document, and of one that is the side of sentence pairs (where a recipe names no documents)."""
SCORED = 330
"""Tokens of a held-out document that are scored at most (``evaluation.scoring.SCORED_BYTES``)."""
_QUERY = 15
_SELF_PROMPT = (30, 96)
_SELF_KEPT = 0.85
_TARGET = 1.5
"""Tokens of the new language for one of English."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What a training stage does.

    Attributes:
        name: the stage's.
        stage: its section.
        row: tokens of a row, the mean.
        labelled: share of the tokens that are learned: only those pass the head.
        mirrored: share of the tokens that another model reads too: the original, or the one after *bitext*.
    """

    name: str
    stage: TrainStage
    row: int
    labelled: float
    mirrored: float = 0.0

    @property
    def bins_a_step(self) -> int:
        """Micro batches of an optimiser step, of all devices; as ``training.plan_steps`` counts them."""
        return max(1, round(self.stage.batch_tokens / self.stage.micro_tokens))

    @property
    def steps(self) -> int:
        """Optimiser steps. Rows never fill their bins quite (0.4 to 2 % of the room), which can add one in a hundred."""
        return math.ceil(math.ceil(self.stage.tokens / self.stage.micro_tokens) / self.bins_a_step)


@dataclass(frozen=True, slots=True)
class Writing:
    """Answers that are written in batches.

    Attributes:
        rows: how many; each beam of a search is one.
        batch: rows at once.
        prompt: tokens of a prompt.
        length: tokens of an answer, from-to; the longest of a batch decides when it ends.
        beams: rows that continue one prompt, which is read once for all of them.
    """

    rows: int
    batch: int
    prompt: int
    length: tuple[int, int]
    beams: int = 1

    @property
    def context(self) -> int:
        """Tokens that a row holds when its answer is half written."""
        return self.prompt + self.length[1] // 2


def document_tokens(recipe: Recipe) -> int:
    """Tokens of a target-language document."""
    return DOCUMENT if recipe.data.target else SIDE


def learning(recipe: Recipe) -> Iterator[Learning]:
    """The training stages that have a budget."""
    sizes = {"pretrain": (*_documents(recipe), 0.0), "bitext": (*_pairs(recipe), 0.0), "finetune": _conversations(recipe)}
    for name, (row, labelled, mirrored) in sizes.items():
        stage: TrainStage = getattr(recipe, name)
        if stage.tokens:
            yield Learning(name, stage, min(row, stage.sequence_length), labelled, mirrored)


def _documents(recipe: Recipe) -> tuple[int, float]:
    row = min(document_tokens(recipe), recipe.pretrain.sequence_length)
    return row, 1 - 1 / row


def _pairs(recipe: Recipe) -> tuple[int, float]:
    """Target sides have the most tokens; which sources are learned is the recipe's choice, and replayed documents are learned whole."""
    stage, target = recipe.bitext, _TARGET / (1 + _TARGET)
    answers = stage.to_target * target + (1 - stage.to_target) * (1 - target)
    sources = {True: 1 - answers, False: 0.0, "target": (1 - stage.to_target) * target}[stage.source_loss]
    return round((1 + _TARGET) * SENTENCE), min(0.97, (answers + sources) * (1 - stage.replay) + stage.replay)


def _conversations(recipe: Recipe) -> tuple[int, float, float]:
    """Tokens and labels of the six kinds of rows, by their shares, and the share that another model reads too."""
    stage = recipe.finetune
    answer = min(recipe.recover.max_new_tokens, 2 * ANSWER)
    whole = answer * (0.75 if recipe.bridge.cut_answers == "trim" else 1.0)  # what a cut answer keeps
    last = whole * _TARGET
    chain = _QUERY + whole + last
    earlier = stage.history * 1.5 * (_QUERY + whole)
    instruction = (1 + _TARGET) * SENTENCE
    pair, pair_learned = _pairs(recipe)
    read = {"chain": (PROMPT + earlier, chain), "recovery": (PROMPT, float(answer)),
            "translation": (PROMPT + instruction / 2, instruction / 2), "direct": (PROMPT + earlier, last),
            "pairs": (pair * (1 - pair_learned), pair * pair_learned),
            "own": ((_QUERY + whole) / 2, (_QUERY + whole) / 2 * _TARGET)}
    asked, learned = (sum(share * read[kind][place] for kind, share in stage.shares.items()) for place in (0, 1))
    mirrored = stage.own * sum(read["own"]) + (stage.shares["chain"] * (whole + last) if stage.own_words == "distribution" else 0.0)
    mirrored += stage.recovery * (PROMPT + answer) if recipe.recover.by != "text" else 0.0
    return round(asked + learned), learned / (asked + learned), mirrored / (asked + learned)


def recovering(recipe: Recipe) -> list[Writing]:
    """The original's answers, those of later turns, the turns that it writes for users, and the prompts that it writes itself.

    Not counted: prompts of ``recover.delicate`` (a file that is not read here). Later turns are all there could be: those of conversations
    that end before are not known.
    """
    settings = recipe.recover
    wanted = settings.count + recipe.evaluate.answers
    later = round(settings.multi_turn * settings.count * settings.most_turns / 2)  # 2 to most_turns turns, each number as often
    length = _up_to(settings.max_new_tokens)
    again = settings.sampled * settings.answers + (settings.answers - 1 if settings.temperature else 0)  # answers beside the first
    found = [Writing(wanted + round(again * settings.count), settings.batch_size, PROMPT, length)]
    if later:
        history = round((PROMPT + length[1] / 2) * settings.most_turns / 2)
        found += [Writing(round((1 + again) * later), settings.batch_size, PROMPT + history, length),
                  Writing(later, settings.batch_size, 4 + history, _SELF_PROMPT)]
    given = len(list(seed_prompts())) if "seed" in settings.prompts else 0
    if "self" in settings.prompts and all(isinstance(origin, str) for origin in settings.prompts) and wanted > given:
        rounds = math.ceil((wanted - given) / _SELF_KEPT / settings.batch_size)
        found.append(Writing(rounds * settings.batch_size, settings.batch_size, 4, _SELF_PROMPT))
    return found


def bridging(recipe: Recipe) -> Writing:
    """Sentences that the model translates into the new language; none where another translator does."""
    translator = recipe.bridge.translator
    chains = min(recipe.recover.count, recipe.bridge.count) if translator.name == "self" else 0
    low, high = _up_to(recipe.recover.max_new_tokens)
    sentences = 1 + math.ceil((low + high) / 2 / SENTENCE)
    return Writing(chains * sentences * translator.beams, recipe.bridge.batch_size, SENTENCE + 2,
                   (round(_TARGET * SENTENCE), 4 * SENTENCE), translator.beams)


def evaluating(recipe: Recipe) -> tuple[int, Writing, Writing]:
    """Tokens that are scored, translations and chains of all models."""
    settings = recipe.evaluate
    models = 5  # original, extend, pretrain, bitext, finetune; the merged one is finetune bit for bit, and measured only if not
    target = min(SCORED, document_tokens(recipe))
    english = min(SCORED, DOCUMENT if recipe.data.english else SIDE)
    answers = settings.answers * (PROMPT + min(recipe.recover.max_new_tokens, 2 * ANSWER)) * 2  # both models read them
    read = models * (settings.documents * (target + english) + answers)
    translations = 3 * 2 * settings.sentences * settings.beam_size
    return (read, Writing(translations, settings.batch_size, PROMPT + SENTENCE, (round(_TARGET * SENTENCE), 5 * SENTENCE),
                          settings.beam_size),
            Writing(2 * settings.query_count, settings.batch_size, PROMPT, _up_to(settings.max_new_tokens)))


def _up_to(limit: int) -> tuple[int, int]:
    return min(ANSWER, limit), limit
