"""NLLB-200, M2M-100 and Opus-MT models on CTranslate2, which runs them some times faster than the library they were published for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transllm.digests import file_digest
from transllm.errors import MissingExtraError, ModelError, first_line
from transllm.languages import Language
from transllm.translation.codes import ENGLISH, m2m, nllb, opus
from transllm.translation.convert import converted, model_folder
from transllm.translation.masks import BRACKETS, MaskForm
from transllm.translation.translator import Direction, Translation

_AT_ONCE = 512
"""Sentences handed over at once: it sorts them by length, so that batches are even."""
_BATCH_TOKENS = 2048
_MOST_TOKENS = 400


class CTranslate2Translator:
    """Translates with one model both ways, or with two of one direction each.

    Args:
        model: a hub id or a folder, of a CTranslate2 model (with its tokenizer's files) or a Hugging Face one, which is converted once.
        language: the target language.
        to_english: the model for the way back, where ``model`` has one direction only (Opus-MT). None: ``model``.
        cache: where converted models are kept.
        compute_type: CTranslate2's name of the arithmetic.
        beam_size: hypotheses side by side.

    Raises:
        MissingExtraError: ctranslate2 is not installed.
        ModelError: there is no such model, it is none of the three families, or it has no weights for the pair.
    """

    name = "ctranslate2"
    # Not measured: no weights of the three families are within reach of our tests. A citation's form is common in what they learned from.
    masks: MaskForm | None = BRACKETS
    longest = 300
    whole_lines = False

    def __init__(self, model: str, language: Language, *, cache: Path, to_english: str | None = None, compute_type: str = "default",
                 beam_size: int = 4) -> None:
        require_ctranslate2()
        import ctranslate2

        self._beam_size = beam_size
        opened = {name: _Loaded(name, cache, compute_type) for name in dict.fromkeys([model, to_english or model])}
        self._models = {"target": opened[model], "english": opened[to_english or model]}
        self._ways: dict[str, tuple[Language, Language]] = {"target": (ENGLISH, language), "english": (language, ENGLISH)}
        self._models["target"].marks(*self._ways["target"])  # an error now, not after an hour
        if to_english is not None:
            self._models["english"].marks(*self._ways["english"])
        self.identity: dict[str, Any] = {"weights": [loaded.digest for loaded in opened.values()], "compute_type": compute_type,
                                         "beam_size": beam_size, "ctranslate2": ctranslate2.__version__, "version": 1}

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        """See ``SentenceTranslator.sentences``."""
        model, (source, target) = self._models[to], self._ways[to]
        for start in range(0, len(sentences), _AT_ONCE):
            made = model.translate(sentences[start: start + _AT_ONCE], source, target, beam_size=self._beam_size)
            yield from ((start + place, one) for place, one in enumerate(made))

    def close(self) -> None:
        """Give the weights' memory back."""
        for model in self._models.values():
            model.engine.unload_model()


class _Loaded:
    """One model and its tokenizer."""

    def __init__(self, name: str, cache: Path, compute_type: str) -> None:
        import ctranslate2
        from transformers import M2M100Tokenizer, MarianTokenizer, NllbTokenizer

        self._name = name
        folder = model_folder(name)
        self.family = _family(folder, name)
        weights = converted(folder, name, cache)
        kinds: dict[str, Any] = {"nllb": NllbTokenizer, "m2m": M2M100Tokenizer, "opus": MarianTokenizer}
        try:
            self._tokenizer = kinds[self.family].from_pretrained(str(folder))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"The tokenizer of '{name}' cannot be loaded ({first_line(error)}). The folder of a CTranslate2 "
                             "model needs the tokenizer's files beside model.bin (ct2-transformers-converter has --copy_files).") from error
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        try:
            self.engine = ctranslate2.Translator(str(weights), device=device, compute_type=compute_type)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"CTranslate2 cannot open '{name}' ({error}). See bridge.translator: model and compute_type.") from error
        self.digest = f"{self.family} {file_digest(weights / 'model.bin', cache=cache)}"

    def marks(self, source: Language, target: Language) -> tuple[str, list[str]]:
        """The tokens that name the languages: of the source, and those that the translation begins with (or, for Opus-MT, the text).

        Raises:
            ModelError: the model has no weights for the pair.
        """
        known = {**self._tokenizer.get_vocab(), **getattr(self._tokenizer, "lang_token_to_id", {})}
        pair = f"from {source.name} to {target.name}"
        if self.family == "opus":
            own = (self._tokenizer.source_lang, self._tokenizer.target_lang)
            several = [token for token in known if token.startswith(">>") and token.endswith("<<")]
            fitting = [mark for mark in opus(target) if mark in known]
            other = bool(own[0] and own[1]) and own != (source.code, target.code)
            if not fitting if several else other:
                what = f"to {', '.join(several[:20])}" if several else f"from '{own[0]}' to '{own[1]}'"
                raise ModelError(f"The model '{self._name}' does not translate {pair}: it translates {what}. An Opus-MT model has one "
                                 "direction: name one for each, bridge.translator.model and bridge.translator.to_english.")
            return "", fitting[:1]
        codes = [nllb(one) if self.family == "nllb" else m2m(one) for one in (source, target)]
        for language, code in zip((source, target), codes, strict=True):
            if code not in known:
                raise ModelError(f"The model '{self._name}' does not translate {pair}: it has no token '{code}' for {language.name}. "
                                 "Choose a model that has, or another translator.")
        return codes[0], codes[1:]

    def translate(self, sentences: Sequence[str], source: Language, target: Language, *, beam_size: int) -> list[Translation]:
        """Translations, in order."""
        mark, begin = self.marks(source, target)
        end = self._tokenizer.eos_token
        texts = [self._tokenizer.tokenize(sentence) for sentence in sentences]
        if self.family == "opus":
            rows, prefixes = [[*begin, *tokens, end] for tokens in texts], None
        else:
            rows, prefixes = [[mark, *tokens, end] for tokens in texts], [begin] * len(texts)
        made = self.engine.translate_batch(rows, target_prefix=prefixes, beam_size=beam_size, max_batch_size=_BATCH_TOKENS,
                                           batch_type="tokens", max_input_length=0, max_decoding_length=_MOST_TOKENS, return_end_token=True)
        return [self._text(result.hypotheses[0], end) for result in made]

    def _text(self, tokens: list[str], end: str) -> Translation:
        special = set(self._tokenizer.all_special_tokens)
        whole = bool(tokens) and tokens[-1] == end
        words = [token for token in tokens if token not in special and not token.startswith("madeupword")]
        if self.family == "m2m":
            words = [word for word in words if not (word.startswith("__") and word.endswith("__"))]
        return Translation(self._tokenizer.convert_tokens_to_string(words).strip(), not whole)


def _family(folder: Path, name: str) -> str:
    """Which of the three families a folder holds, by its tokenizer or its config."""
    found: list[str] = []
    for file, key in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "tokenizer_class"), ("config.json", "model_type")):
        try:
            found.append(str(json.loads((folder / file).read_text(encoding="utf-8")).get(key, "")).lower())
        except (OSError, ValueError):
            continue
    for kind in found:
        for sign, family in (("nllb", "nllb"), ("m2m", "m2m"), ("marian", "opus")):
            if sign in kind:
                return family
    raise ModelError(f"'{name}' is none of NLLB-200, M2M-100 and Opus-MT, as far as its tokenizer_config.json and config.json say. Choose "
                     "a model of these families, or another translator.")


def require_ctranslate2() -> None:
    """Raise if CTranslate2 is not installed."""
    try:
        import ctranslate2  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("ctranslate2", "ctranslate2", "The translator 'ctranslate2' of bridge.translator") from error
