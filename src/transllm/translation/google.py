"""Google Cloud Translation (v3, "Advanced"), by its official client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transllm.errors import MissingExtraError, ModelError
from transllm.languages import Language
from transllm.translation import codes
from transllm.translation.masks import NOTRANSLATE, MaskForm
from transllm.translation.translator import Direction, Translation

_MOST_CHARACTERS = 20_000  # of a request; the interface's limit is 30,720
_MOST_TEXTS = 256


class GoogleTranslator:
    """Translates lines as HTML; masks are elements that say not to translate them.

    Args:
        language: the target language.
        project: the project that pays. None: the one of the key file.
        url: another address than Google's.
        patience: seconds of attempts for one request, where the failure may pass.

    Raises:
        MissingExtraError: the client is not installed.
        ModelError: there is no key, or no project.
    """

    name = "google"
    masks: MaskForm | None = NOTRANSLATE
    longest = 2000
    whole_lines = True

    def __init__(self, language: Language, *, project: str | None = None, url: str | None = None, patience: float = 120.0) -> None:
        require_google()
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import translate_v3

        try:
            credentials, own = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-translation"])
        except GoogleAuthError as error:
            raise ModelError(f"The translator 'google' finds no key ({_short(error)}) Set GOOGLE_APPLICATION_CREDENTIALS to the key "
                             "file of a service account that may use Cloud Translation.") from error
        if not (project or own):
            raise ModelError("The translator 'google' does not know which project pays. Set bridge.translator.project.")
        self._parent = f"projects/{project or own}/locations/global"
        # REST, not gRPC: no threads that a forked process would inherit.
        self._client: Any = translate_v3.TranslationServiceClient(credentials=credentials, transport="rest",
                                                                  client_options={"api_endpoint": url} if url else None)
        english, other = codes.google(codes.ENGLISH), codes.google(language)
        self._codes = {"target": (english, other), "english": (other, english)}
        self._patience = patience
        self.identity: dict[str, Any] = {"url": url, "version": 1}

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        """See ``SentenceTranslator.sentences``."""
        for start, some in _requests(sentences):
            made = self._translated(some, *self._codes[to])
            if len(made) != len(some):
                raise ModelError(f"Google gave {len(made)} translations for {len(some)} texts. Try again later.")
            yield from ((start + place, Translation(text, False)) for place, text in enumerate(made))

    def close(self) -> None:
        """End the connections."""
        self._client.transport.close()

    def _translated(self, texts: list[str], source: str, target: str) -> list[str]:
        from google.api_core import exceptions
        from google.api_core.retry import Retry, if_exception_type
        from google.auth.exceptions import GoogleAuthError
        from google.protobuf.json_format import ParseError

        passing = if_exception_type(exceptions.TooManyRequests, exceptions.ServerError, exceptions.RetryError, ConnectionError)
        kept = "What was translated is in the cache; run the same command again."
        try:
            answer = self._client.translate_text(
                request={"parent": self._parent, "contents": texts, "mime_type": "text/html", "source_language_code": source,
                         "target_language_code": target}, retry=Retry(predicate=passing, timeout=self._patience), timeout=60.0)
            return [one.translated_text for one in answer.translations]
        except GoogleAuthError as error:
            raise ModelError(f"Google refused the key ({_short(error)}). See GOOGLE_APPLICATION_CREDENTIALS.") from error
        except (exceptions.Unauthorized, exceptions.Forbidden) as error:
            raise ModelError(f"Google refused the request ({_short(error)}). The key must be of an account that may use Cloud Translation "
                             f"in '{self._parent}', and the interface must be enabled there.") from error
        except exceptions.BadRequest as error:
            raise ModelError(f"Google does not translate {source} to {target} ({_short(error)}). Choose another translator.") from error
        except (exceptions.GoogleAPIError, ParseError, OSError, ValueError) as error:
            # Once the patience is over, the client wraps what the last attempt met.
            if isinstance(getattr(error, "cause", error), exceptions.TooManyRequests):
                raise ModelError(f"Google says that the quota is used up ({_short(error)}). {kept}") from error
            raise ModelError(f"Google failed ({_short(error)}). {kept}") from error


def _requests(sentences: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The sentences in requests that the interface takes, with the number of each one's first."""
    some: list[str] = []
    for number, sentence in enumerate(sentences):
        if some and (len(some) == _MOST_TEXTS or sum(map(len, some)) + len(sentence) > _MOST_CHARACTERS):
            yield number - len(some), some
            some = []
        some.append(sentence)
    if some:
        yield len(sentences) - len(some), some


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def require_google() -> None:
    """Raise if the client is not installed."""
    try:
        from google.cloud import translate_v3  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("google-cloud-translate", "google", "The translator 'google' of bridge.translator") from error
