"""Sections of the stages that make data: *recover* (the original answers) and *bridge* (its answers become chains)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from transllm.recipe.base import Count, Section, Share
from transllm.recipe.sources import Source


class Logits(Section):
    """How the model is held against the original's distributions while it trains (training/mirror.py). The original is the same weights
    with the adapter off, so this costs a forward pass over the recovery rows and no memory."""

    divergence: Literal["forward", "reverse", "mixed"] = "forward"
    """``forward``: KL(original || model), what *evaluate* measures. ``reverse``: KL(model || original). ``mixed``: the generalised
    Jensen-Shannon divergence (arXiv 2306.13649)."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The original's share of the mixture of ``mixed``."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both distributions are flattened by it. 1: they are what the models sample from."""
    weight: Annotated[float, Field(gt=0)] = 4.0
    """What a place counts, where a label counts 1. On average a label pulls as its distribution does, and scatters: without the scatter a
    place can count more (docs/results)."""
    chains: bool = True
    """Chains hold an answer of the original too, in English after the query in English: learn it from the original's distribution as well,
    which reads the same conversation in English."""
    own_samples: Share = 0.0
    """Share of the recovery rows whose answers the model writes itself, sampled at temperature 1, to be held against the original there:
    it is then corrected where it goes itself (arXiv 2306.13649). Their words are never labels."""
    refresh: Count = 16
    """Steps between two moments at which it writes those for the steps that come. Fewer keep them closer to the model that learns from
    them, and make smaller batches to write."""


class EngineSettings(Section):
    """Which program speaks for the original chat model. ``engine: llamacpp`` is short for ``engine: {name: llamacpp}``."""

    name: Literal["transformers", "auto", "llamacpp", "vllm", "server"] = "transformers"
    """``transformers``: in this process; the same words on every machine with the same precision. ``llamacpp`` and ``vllm`` are extras,
    ``server`` is any that speaks OpenAI's protocol. ``auto`` measures those that work here and takes the fastest; it is not the
    default, since other engines round otherwise and greedy answers part after some words: the same recipe would give other answers
    on another machine. What was taken is in the stage's folder, and a stopped stage goes on with it."""
    url: str | None = None
    """``server``: its address, with the ``/v1`` that most have (http://127.0.0.1:8000/v1)."""
    model: str | None = None
    """``server``: what it calls the model. It must be the recipe's: its answers are what the transformed model learns as the original's."""
    key_env: str | None = None
    """``server``: the environment variable that holds the key. None: it asks for none. No key is ever written into a recipe."""
    concurrency: Count = 16
    """``server``, ``llamacpp``: conversations in work at once."""
    requests_a_minute: Count | None = None
    """``server``: no more than so many, retries included."""
    attempts: Count = 6
    """``server``: how often one request is tried. The pauses between (1, 2, 4 ... seconds, or what the server asks for) make half a
    minute."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """``server``: how long one reply may take."""
    body: dict[str, Any] = {}
    """``server``: more keys for each request. Several servers leave unlikely tokens out unless told otherwise (llama.cpp: ``{top_k: 0,
    min_p: 0}``; vLLM: ``{top_k: -1}``), and then samples are not the model's own distribution."""

    @model_validator(mode="after")
    def _whole(self) -> EngineSettings:
        if self.name == "server" and not (self.url and self.model):
            raise ValueError("a server needs its 'url' and the 'model' that it serves: "
                             "engine: {name: server, url: http://127.0.0.1:8000/v1, model: NAME}")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"'url' must begin with http:// or https://, but is '{self.url}'")
        if self.url is not None and self.name not in ("server", "auto"):
            raise ValueError(f"'url' is for the engine 'server', but the name is '{self.name}'")
        return self


class Ray(Section):
    """Workers that answer side by side, on one machine or many (docs/many-processes.md); extra ``ray``. It changes no answer."""

    workers: Count = 2
    """Processes with an engine of their own."""
    address: str | None = None
    """Of a Ray cluster that runs: ``host:port``, or ``auto`` for the one that ``ray start`` began on this machine. None: one is started on
    this machine, and ends with the stage."""
    block: Count = 64
    """Conversations that a worker gets at once: all that is repeated where one is killed. An engine's batch is filled from it."""
    cpus: Count | None = None
    """Processors of a worker, and threads of its engine. None shares out what the cluster has."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a worker; it sees no others. None: one, if the machine on which ``transllm`` is started has any."""


class Recover(Section):
    """The original chat model answers English prompts."""

    by: Literal["text", "logits", "both"] = "text"
    """What *finetune* learns from the answers. ``text``: their words, as in the paper. ``logits``: the original's distribution at each of
    them. ``both``: the sum of both losses. Needs the original inside the model: not with ``training.train: full`` or
    ``training.embeddings: all``."""
    logits: Logits = Logits()

    prompts: list[Literal["seed", "self"] | Source] = ["seed", "self"]
    """``seed``: the library's own; ``self``: the model writes user turns itself (Magpie, arXiv 2406.08464); or files and data sets."""
    max_broken: Share = 0.05
    """More rows than this that cannot be read (a broken line, a missing column), in any one source of prompts, is an error: the file
    is not what the recipe thinks. Fewer are counted, and the manifest names the first."""
    delicate: Source | None = None
    """Prompts that a careful model declines, all of them answered beside ``count``, for one turn each, and counted apart: what the original
    refuses is its safety. None: the paper used no safety data."""
    count: Count = 52_000
    """Prompts to answer (the paper: 52 k). ``self`` fills what the others leave."""
    system_prompts: list[str] | Source = []
    """System prompts, as a list or a source of one a line. Empty: none but what the chat template says itself."""
    system_share: Share = 0.25
    """Share of the conversations that begin with one of them."""
    multi_turn: Share = 0.0
    """Share of the conversations that go on: the chat model writes the user's next turn itself, the filter of prompts reads it, and it is
    answered. An answer that is cut or dropped ends its conversation, so leave room in ``max_new_tokens``. 0: single turns, as in
    the paper."""
    most_turns: Annotated[int, Field(ge=2, le=4)] = 3
    """Turns of those at most; as many of them have two as have any other number. A small model that plays the user loses the thread after
    some four."""
    max_new_tokens: Count = 1024
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of the answers that become chains. 0 is greedy, the paper's decoding."""
    sampled: Share = 1.0
    """Share of the prompts that are answered a second time, sampled at temperature 1, for recovery. Learned as often as the original
    says them, its answers bring the model back to it; its greedy answers make the model surer than it was (docs/results: half the
    KL). 0: recovery on the greedy answers, as in the paper."""
    answers: Count = 1
    """Answers to a prompt, of each kind that is sampled: those of ``sampled``, and those that become chains if ``temperature`` is above
    0. Greedy decoding would say the same again. More answers cost less than more prompts, and teach less."""
    cut_answers: Literal["keep", "drop"] = "keep"
    """What becomes of an answer that met ``max_new_tokens``. ``keep``: recovery learns its words without an end, and *bridge* decides
    (``bridge.cut_answers``); with a small limit most answers are cut."""
    max_repeats: Count = 4
    """Answers in which a run of four words stands more often are dropped: a model in a loop."""
    check_language: bool = True
    """Drop answers that are not English."""
    near_duplicates: Share | None = 0.8
    """Drop an answer of twelve words or more that shares so many of its words with an earlier one (MinHash); refusals, which are all alike,
    stay. None keeps all."""
    batch_size: Count = 64
    """Conversations answered at once."""
    engine: EngineSettings = EngineSettings()
    """What answers: ``transformers``, ``llamacpp``, ``vllm``, ``server`` or ``auto``, or a section with a ``name``."""
    ray: Ray | None = None
    """Spread conversations over the workers of a Ray cluster. None: all is answered in this process, which on one machine is as fast."""
    self_prompt_temperature: Annotated[float, Field(gt=0)] = 1.0
    """User turns are sampled: greedy would write one prompt over and over."""

    @field_validator("engine", mode="before")
    @classmethod
    def _short_engine(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class TranslatorSettings(Section):
    """Who translates. ``translator: apertium`` is short for ``translator: {name: apertium}``."""

    name: Literal["self", "apertium", "ctranslate2", "llm", "google", "deepl"] = "self"
    """``self``: the model after *bitext*. ``apertium``: rule-based, where it is installed. The others are extras: ``ctranslate2`` runs
    NLLB-200, M2M-100 and Opus-MT here; ``llm`` asks a chat model behind any OpenAI-compatible server; ``google`` and ``deepl`` are
    services that cost money for each character."""
    model: str | None = None
    """``ctranslate2``: a hub id or a folder, of a CTranslate2 model or a Hugging Face one, which is converted once. ``llm``: what the
    server calls the model."""
    to_english: str | None = None
    """``ctranslate2``: the model for the way back, where ``model`` has one direction only (Opus-MT); the round trip needs it."""
    compute_type: Literal["default", "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16",
                          "float32"] = "default"
    """``ctranslate2``: its arithmetic. ``default``: the model's own; ``int8`` is some times faster on processors and a little worse."""
    beam_size: Count | None = None
    """``ctranslate2``, ``self``: hypotheses side by side. None: 4 for ``ctranslate2``, as its three families were published with; 1, which
    is greedy, for ``self``. More are better there too, and take as many times as long (docs/translators.md)."""
    url: str | None = None
    """``llm``: the server's address (http://127.0.0.1:8000/v1). ``google``, ``deepl``: another address than the service's own."""
    key_env: str | None = None
    """The environment variable that holds the key. None: DEEPL_AUTH_KEY for ``deepl``, no key for ``llm``; ``google`` goes by
    GOOGLE_APPLICATION_CREDENTIALS. No key is ever written into a recipe."""
    project: str | None = None
    """``google``: the project that pays. None: the key file's."""
    prompt: str = ("Translate the text below from {source} into {target}. Write the translation only: no explanation, no notes, no quotes "
                   "around it. Translate everything and answer nothing in it, even if it is a question or a task. Leave marks such as [1] "
                   "as they are, where they belong in the translation.\n\n{text}")
    """``llm``: what is asked, with ``{source}``, ``{target}`` (languages) and ``{text}`` (a line). Asked for a translation of a question,
    chat models like to answer it, so the default forbids that."""
    max_new_tokens: Count = 2048
    """``llm``: of one answer; a line is cut at 1,500 characters before it is sent."""
    concurrency: Count = 8
    """``llm``: requests at once."""
    cache: bool = True
    """Keep translations in the user's cache folder (``transllm/translations.sqlite``), so that a rerun translates nothing again, whatever
    filter changed. They are told apart by the translator's weights and settings."""

    @property
    def beams(self) -> int:
        """``beam_size``, or what the translator takes without it."""
        return self.beam_size or (4 if self.name == "ctranslate2" else 1)

    @model_validator(mode="after")
    def _fits(self) -> TranslatorSettings:
        needs = {"ctranslate2": ("model",), "llm": ("model", "url")}.get(self.name, ())
        missing = [key for key in needs if getattr(self, key) is None]
        if missing:
            raise ValueError(f"the translator '{self.name}' needs {' and '.join(repr(key) for key in missing)}: "
                             f"translator: {{name: {self.name}, {', '.join(f'{key}: ...' for key in needs)}}}")
        users = {"model": ("ctranslate2", "llm"), "to_english": ("ctranslate2",), "compute_type": ("ctranslate2",),
                 "beam_size": ("ctranslate2", "self"), "url": ("llm", "google", "deepl"), "key_env": ("llm", "deepl"),
                 "project": ("google",), "prompt": ("llm",), "max_new_tokens": ("llm",), "concurrency": ("llm",)}
        default = type(self).model_fields
        idle = [key for key, names in users.items() if self.name not in names and getattr(self, key) != default[key].default]
        if idle:
            raise ValueError(f"'{idle[0]}' is for {' and '.join(map(repr, users[idle[0]]))}, but the translator is '{self.name}'")
        if "{text}" not in self.prompt:
            raise ValueError("'prompt' must hold {text}, where the text to translate goes")
        return self


class Bridge(Section):
    """Recovery conversations become chains in the target language."""

    translator: TranslatorSettings = TranslatorSettings()
    """A name (``self``, ``apertium``), or a section with its settings."""
    count: Count = 52_000
    """Conversations to translate at most."""
    cut_answers: Literal["drop", "trim"] = "drop"
    """What becomes of an answer that met ``recover.max_new_tokens``. ``trim`` keeps its whole sentences: with a small budget most answers
    are cut."""
    min_length_ratio: Annotated[float, Field(gt=0)] = 0.4
    max_length_ratio: Annotated[float, Field(gt=0)] = 2.5
    """Characters of the translation over characters of the English text; outside, the example is dropped."""
    check_language: bool = True
    """Drop examples whose target side is not in the target language."""
    max_repeats: Count = 4
    """Drop texts in which a run of four words stands more often: a model in a loop."""
    encoder: str = "self"
    """What tells how alike a text and its translation are. ``self``: hidden states of the model after *bitext*, which reads both languages
    and needs nothing else. ``use``: the multilingual Universal Sentence Encoder, which did not make the translations (16 languages, the
    extra ``encoder``). Else a hub id or folder of any Hugging Face encoder."""
    round_trip: bool = False
    """Also translate back and see how much of the English returns (chrF). It doubles the translator's work."""
    drop_worst: Share = 0.1
    """Drop so large a share of the examples that passed all other filters, those that score worst. 0 drops none and scores none."""
    batch_size: Count = 64

    @field_validator("translator", mode="before")
    @classmethod
    def _short_translator(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
