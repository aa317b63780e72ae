"""Sections of the stages that train: *pretrain*, *bitext*, *finetune*, and what they share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from transllm.recipe.base import Count, Section, Share
from transllm.recipe.sources import Source


class Lora(Section):
    """The adapter (arXiv 2106.09685). Defaults are the paper's."""

    r: Count = 64
    alpha: Annotated[float, Field(gt=0)] = 128
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    targets: str | list[str] = "all-linear"
    """Module names, or all linear layers but the head (q, k, v, o, gate, up, down in a Llama)."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """``rslora``: the adapter's product counts alpha / sqrt(r) times instead of alpha / r, so that a higher rank does not learn more slowly
    (arXiv 2312.03732). ``dora``: each output's length is learned apart from its direction (arXiv 2402.09353); it takes peft's own
    way through the layers, which is slower than ours."""
    b_factor: Annotated[float, Field(gt=0)] = 1.0
    """How many times the learning rate of A the matrices B get (LoRA+, arXiv 2402.12354, which suggests 16 and a lower rate for A)."""


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
EXTRA_TRACKERS: tuple[Tracker, ...] = ("wandb", "mlflow", "trackio")
"""Those whose package is an extra; both have the tracker's name."""

Attention = Literal["auto", "packed", "sdpa", "eager", "flash_attention_2", "flex_attention"]


class Training(Section):
    """What the three training stages share."""

    train: Literal["lora", "rows", "full"] = "lora"
    """What of the model trains beside the rows of ``embeddings``. ``lora``: an adapter. ``rows``: nothing, only rows are learned. ``full``:
    all weights and all rows, whatever ``embeddings`` says. The original model is then no longer inside, and a stage's folder holds all
    weights in float32."""
    lora: Lora = Lora()
    embeddings: Literal["new", "all"] = "new"
    """``new``: only the rows of new tokens train, so the original model stays inside. ``all``: the paper's variant."""
    quantize: Literal["none", "nf4"] = "none"
    """``nf4``: the frozen weights are held in 4 bits while an adapter trains (QLoRA, arXiv 2305.14314). For CUDA, with the extra ``qlora``.
    The adapter is merged into the weights that were not rounded, and *evaluate* measures that."""
    new_rows_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """A rate of their own for the rows of embedding and head that train. None: the stage's."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Another rate for the rows of a head that is not tied to the embedding. None: as the embedding's."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the processor multiplies it faster, else float32. Trained weights are always float32, so that no update is
    lost to rounding; they are rounded for each product."""
    attention: Attention = "auto"
    """``auto`` takes the fastest known that gives each document of a packed row what it gets alone (measured on two documents):
    FlashAttention where it is installed and the device is CUDA, else the library's own, else the model's own. Any other is taken if it
    does so, and refused if not."""
    compile: Literal["auto", "off"] = "auto"
    """``auto``: on an accelerator, compile the repeated layer once, time it on the first bins, and keep it where it is faster. On
    processors the library's own layers are faster (docs/architecture.md)."""
    gradient_checkpointing: bool = False
    """Trades a third more time for memory; for large models."""
    clip_gradient: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 2.0
    """A kill loses at most so much work."""
    log_every: Count | None = None
    """Steps between two lines of the log; null: 10, and fewer in a stage of less than 200 steps, so that its curve has 20 points."""
    trackers: list[Tracker] = ["tensorboard"]
    """Who else gets the numbers of the log. TensorBoard's files lie in the stage's folder (``tensorboard --logdir runs/NAME``); the others
    are extras: ``pip install 'transllm[wandb]'``. ``[]``: nobody."""
    stop_on_spike: bool = False
    """Stop where a step's loss leaps far above that of the steps before (see training/guards.py) and save its batch. False: only tell."""

    @property
    def trains_old_rows(self) -> bool:
        """Whether the original's embedding rows train too."""
        return self.embeddings == "all" or self.train == "full"

    @model_validator(mode="after")
    def _nothing_rounded_trains(self) -> Training:
        if self.quantize != "none" and self.train == "full":
            raise ValueError("'quantize' is for frozen weights: weights of 4 bits cannot be trained, so it does not go with 'train: full'")
        return self


class TrainStage(Section):
    """Budget and schedule of one training stage."""

    tokens: Annotated[int, Field(ge=0)] = 100_000_000
    """Budget in tokens, not epochs. 0 skips the stage."""
    batch_tokens: Count = 524_288
    """Tokens in one optimiser step over all processes (the paper: 1,024 sequences of 512)."""
    micro_tokens: Count = 16_384
    """Tokens that one process holds at once; more are accumulated."""
    sequence_length: Count = 512
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup: Share = 0.05
    """Share of the steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    min_learning_rate: Share = 0.0
    """Where the cosine ends, as a share of the learning rate."""


class Pretrain(TrainStage):
    """Target-language pre-training."""

    warmup: Share = 0.0005


class Bitext(TrainStage):
    """Translation pre-training, both directions, with English replay."""

    replay: Share = 0.1
    """Share of English documents among the tokens (the paper replays the Pile; its share is unknown). A tenth keeps
    English bits per byte while most of the budget goes to translation."""
    to_target: Share = 0.5
    """Share of pairs that are learned into the target language; the rest are learned into English. Writing a new language takes more
    practice than reading it."""
    source_loss: bool | Literal["target"] = True
    """Learn the source side too, as in pre-training; ``target``: only where it is the target language, so that at a small budget few
    labels are of a language that the model speaks already (docs/results). False learns the translations only."""
    choose: Literal["random", "coverage"] = "random"
    """Which pairs to learn where there are more than the budget lets one: any, or those that together show most common English words often
    enough (data/coverage.py). It pays where the budget is a small part of the text."""
    lexicon: list[Source] = []
    """Pairs of words, learned in the same form before any sentences count: a short way to everyday words that the sentences at hand do not
    have. Held-out text is not measured on them."""


class Requests(Section):
    """Words of users who ask for a translation, beside the library's (data/translation_requests.yaml). ``{text}`` stands for the text."""

    to_target: list[str] = []
    """In the target language, for a translation into it: ``"Traduce esto: {text}"``."""
    to_english: list[str] = []
    """In the target language, for a translation into English."""

    @field_validator("to_target", "to_english")
    @classmethod
    def _place_for_text(cls, forms: list[str]) -> list[str]:
        for form in forms:
            if form.count("{text}") != 1:
                raise ValueError(f"'{form}' holds {{text}} {form.count('{text}')} times; it must hold it once, where the text goes")
        return forms


class Finetune(TrainStage):
    """Transfer fine-tuning on recovery, chain, translation and direct rows, on pairs and on the model's own translations. The mixture is in
    shares of rows."""

    tokens: Annotated[int, Field(ge=0)] = 50_000_000
    batch_tokens: Count = 262_144
    sequence_length: Count = 2048
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup: Share = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    recovery: Share = 0.4
    """Share of English recovery rows (the original model's own answers)."""
    translation: Share = 0.2
    """Share of translation instructions."""
    direct: Share = 0.0
    """Share of chains' answers that are learned once more without their chain, for ``chat --mode direct``, which answers at once and less
    well."""
    pairs: Share = 0.0
    """Share of sentence pairs in the form of *bitext*, rehearsed: a small model forgets some of what it was taught there."""
    own: Share = 0.0
    """Share of queries and answers of the chains that are rehearsed in that form too, with the translations that *bridge* made: each word
    is learned from what the model said of it after *bitext*, so that a sentence like a chat's is translated as before. There are two for
    each chain. What is left beside these five are chains."""
    own_words: Literal["text", "distribution"] = "text"
    """How the last step of a chain is learned. ``text``: as it stands, as in the paper. ``distribution``: from what the model said after
    *bitext* at each of its words. A model that translated the chains itself (``bridge.translator: self``) learns from its own text to be
    surer of its mistakes (docs/results)."""
    requests: Requests = Requests()
    """Further words for translation instructions."""
    to_target: Share = 0.5
    """Share of the instructions that ask for the target language. Of those into English each opens as a chain does, and ends after its
    first step: the fewer there are, the fewer chains end there too."""
    history: Share = 0.25
    """Share of chains that follow one or two earlier turns, in English as chat keeps them. They are turns of other conversations: what is
    learned is that a history does not change the form of an answer."""
    own_weight: Annotated[float, Field(gt=0)] = 2.0
    """How many times a word that is learned from a distribution counts in the gradient: it does not scatter as a label does."""
    form_weight: Annotated[float, Field(gt=0)] = 1.0
    """How many times the markers and the end of an answer count in the gradient. They are one label in twenty and decide the form of all
    others. 1: the paper's."""

    @property
    def shares(self) -> dict[str, float]:
        """What share of the rows each kind has."""
        others = {"recovery": self.recovery, "translation": self.translation, "direct": self.direct, "pairs": self.pairs,
                  "own": self.own}
        return {"chain": 1 - sum(others.values()), **others}

    @model_validator(mode="after")
    def _room_for_chains(self) -> Finetune:
        if self.shares["chain"] <= 0:
            raise ValueError("'recovery', 'translation', 'direct', 'pairs' and 'own' leave no room for chains: their sum must be below 1")
        return self
