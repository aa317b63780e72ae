"""DeepL, by its official client."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from transllm.errors import MissingExtraError, ModelError
from transllm.languages import Language
from transllm.translation import codes
from transllm.translation.masks import XML, MaskForm
from transllm.translation.translator import Direction, Translation

_AT_ONCE = 50  # the interface's limit; at most 128 KiB in all


class DeepLTranslator:
    """Translates lines; masks are tags, which DeepL carries over.

    Args:
        language: the target language.
        key_env: the environment variable that holds the key.
        url: another address than the key's own (free and paid keys have different ones).

    Raises:
        MissingExtraError: the client is not installed.
        ModelError: the key is missing or refused, or DeepL does not know the pair.
    """

    name = "deepl"
    masks: MaskForm | None = XML
    longest = 2000
    whole_lines = True

    def __init__(self, language: Language, *, key_env: str = "DEEPL_AUTH_KEY", url: str | None = None) -> None:
        require_deepl()
        import deepl

        key = os.environ.get(key_env, "").strip()
        if not key:
            raise ModelError(f"The translator 'deepl' needs a key, and the environment variable '{key_env}' is not set. "
                             f"Set it: export {key_env}=... (https://www.deepl.com/pro-api).")
        self._key_env = key_env
        self._client: Any = deepl.DeepLClient(key, server_url=url)
        self._codes = {"target": (codes.deepl(codes.ENGLISH, source=True), codes.deepl(language, source=False)),
                       "english": (codes.deepl(language, source=True), codes.deepl(codes.ENGLISH, source=False))}
        known = {one.code.upper() for one in self._asked("get_target_languages")}
        if not known & {self._codes["target"][1], self._codes["english"][0]}:
            raise ModelError(f"DeepL does not translate into {language.name} ({self._codes['target'][1]}). Choose another translator.")
        self.identity: dict[str, Any] = {"url": url, "version": 1}

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        """See ``SentenceTranslator.sentences``."""
        source, target = self._codes[to]
        for start in range(0, len(sentences), _AT_ONCE):
            some = sentences[start: start + _AT_ONCE]
            made = self._asked("translate_text", list(some), source_lang=source, target_lang=target, tag_handling="xml",
                               preserve_formatting=True)
            if not isinstance(made, list) or len(made) != len(some):
                raise ModelError(f"DeepL did not give {len(some)} translations for as many texts. Try again later.")
            yield from ((start + place, Translation(one.text, False)) for place, one in enumerate(made))

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def _asked(self, request: str, *arguments: Any, **settings: Any) -> Any:
        """The answer to a request; the client itself tries again where that may help."""
        import deepl

        kept = "What was translated is in the cache; run the same command again."
        try:
            return getattr(self._client, request)(*arguments, **settings)
        except deepl.AuthorizationException as error:
            raise ModelError(f"DeepL refused the key in '{self._key_env}'. Set the variable to a key that it takes.") from error
        except deepl.QuotaExceededException as error:
            raise ModelError(f"DeepL says that the key's quota of characters is used up. With more of it: {kept}") from error
        except deepl.TooManyRequestsException as error:
            raise ModelError(f"DeepL asks for fewer requests and did not take one after several attempts. {kept}") from error
        except deepl.ConnectionException as error:
            raise ModelError(f"DeepL cannot be reached ({error}). {kept}") from error
        except (deepl.DeepLException, ValueError, KeyError, TypeError) as error:  # the last three: an answer that is none
            raise ModelError(f"DeepL failed ({' '.join(str(error).split())[:200]}). {kept}") from error


def require_deepl() -> None:
    """Raise if the client is not installed."""
    try:
        import deepl  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("deepl", "deepl", "The translator 'deepl' of bridge.translator") from error
