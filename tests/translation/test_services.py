"""The official clients of DeepL and Google against a server of our own: what they are asked, and each way in which it may go wrong.

The services themselves cannot be reached by tests; what they answer is written here as they document it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from transllm.errors import ModelError
from transllm.languages import LANGUAGES
from transllm.progress import Silent
from transllm.translation import TextTranslator
from transllm.translation.deepl import DeepLTranslator
from transllm.translation.google import GoogleTranslator

Answer = Callable[[str, Any, dict[str, str]], tuple[int, Any]]


class Server:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked = answer, list[tuple[str, Any]]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                asked = json.loads(body) if body.startswith("{") else parse_qs(body)
                path = self.path.split("?")[0]
                outer.asked.append((path, asked))
                status, value = outer.answer(path, asked, {name.lower(): value for name, value in self.headers.items()})
                data = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def upper(markup: str) -> str:
    """A 'translation' in capitals that leaves tags and entities as they are."""
    return "".join(part if part.startswith(("<", "&")) else part.upper() for part in re.split(r"(<[^<>]*>|&\w+;)", markup))


_TEXTS = ["Run `a b` at 5 < 6 & wait.\n\n- Two sentences. In a line.", ""]
_UPPER = ["RUN `a b` AT 5 < 6 & WAIT.\n\n- TWO SENTENCES. IN A LINE.", ""]


# DeepL

_LANGUAGES = [{"language": code, "name": code, "supports_formality": False} for code in ("ES", "EN-US", "PT-PT")]


def deepl_answers(translate: Callable[[dict[str, Any]], tuple[int, Any]], key: str = "secret") -> Answer:
    def answer(path: str, asked: Any, headers: dict[str, str]) -> tuple[int, Any]:
        if headers.get("authorization") != f"DeepL-Auth-Key {key}":
            return 403, {"message": "Forbidden"}
        return (200, _LANGUAGES) if path.endswith("/languages") else translate(asked)

    return answer


def deepl_upper(asked: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"translations": [{"detected_source_language": "EN", "text": upper(text), "billed_characters": len(text)}
                                 for text in asked["text"]]}


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepl", reason="the extra 'deepl' is not installed")
    monkeypatch.setenv("DEEPL_AUTH_KEY", "secret")
    monkeypatch.setattr("deepl.http_client.max_network_retries", 0)


def test_deepl_gets_markup_and_lines(serve: Callable[[Answer], Server], key: None) -> None:
    server = serve(deepl_answers(deepl_upper))
    translator = DeepLTranslator(LANGUAGES["es"], url=server.url)
    made = TextTranslator(translator).translate(_TEXTS, to="target", progress=Silent(), label="")
    assert [one.text for one in made] == _UPPER and not any(one.lost for one in made)
    path, asked = server.asked[-1]
    assert path == "/v2/translate" and asked["tag_handling"] in ("xml", ["xml"])
    assert asked["text"] == ['Run <x id="7"/> at 5 &lt; 6 &amp; wait.', "Two sentences. In a line."]
    assert {asked["source_lang"], asked["target_lang"]} == {"EN", "ES"}
    assert len(dict(translator.sentences([f"a {number}" for number in range(120)], to="english"))) == 120
    assert len(server.asked) == 5 and server.asked[-1][1]["target_lang"] == "EN-US", "no more than 50 texts at once"
    translator.close()


@pytest.mark.parametrize(("answer", "message"), [
    (lambda _: (456, {"message": "Quota Exceeded"}), "quota of characters is used up"),
    (lambda _: (429, {"message": "Too many requests"}), "fewer requests"),
    (lambda _: (500, {"message": "oh"}), "DeepL failed"),
    (lambda _: (200, "<html>I am a proxy</html>"), "did not give 1 translations"),
    (lambda _: (200, {"nothing": 1}), "DeepL"),
    (lambda _: (200, {"translations": []}), "did not give 1 translations"),
])
def test_what_deepl_may_answer(serve: Callable[[Answer], Server], key: None, answer: Any, message: str) -> None:
    translator = DeepLTranslator(LANGUAGES["es"], url=serve(deepl_answers(answer)).url)
    with pytest.raises(ModelError, match=message):
        dict(translator.sentences(["Hello."], to="target"))


def test_deepl_and_its_key(serve: Callable[[Answer], Server], key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(deepl_answers(deepl_upper, key="another"))
    with pytest.raises(ModelError, match="refused the key in 'DEEPL_AUTH_KEY'"):
        DeepLTranslator(LANGUAGES["es"], url=server.url)
    monkeypatch.delenv("DEEPL_AUTH_KEY")
    with pytest.raises(ModelError, match="'DEEPL_AUTH_KEY' is not set"):
        DeepLTranslator(LANGUAGES["es"], url=server.url)
    monkeypatch.setenv("MINE", "another")
    with pytest.raises(ModelError, match="does not translate into Yoruba"):
        DeepLTranslator(LANGUAGES["yo"], key_env="MINE", url=server.url)
    server.close()
    with pytest.raises(ModelError, match="cannot be reached"):
        DeepLTranslator(LANGUAGES["es"], key_env="MINE", url=server.url)


# Google

@pytest.fixture(scope="module")
def private_key() -> str:
    pytest.importorskip("google.cloud.translate_v3", reason="the extra 'google' is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


@pytest.fixture
def account(private_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    """Writes a service account's key file."""
    def write(server: Server) -> None:
        value = {"type": "service_account", "project_id": "mine", "private_key_id": "1", "private_key": private_key,
                 "client_email": "me@mine.iam", "token_uri": f"{server.url}/token"}
        (tmp_path / "key.json").write_text(json.dumps(value), encoding="utf-8")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))

    return write


def google_answers(translate: Callable[[dict[str, Any]], tuple[int, Any]]) -> Answer:
    def answer(path: str, asked: Any, headers: dict[str, str]) -> tuple[int, Any]:
        # The client signs its tokens itself, with the private key.
        return translate(asked) if headers.get("authorization", "").startswith("Bearer ey") else (401, {"error": {"message": "no token"}})

    return answer


def google_upper(asked: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"translations": [{"translatedText": upper(text)} for text in asked["contents"]]}


def test_google_gets_markup_and_lines(serve: Callable[[Answer], Server], account: Callable[[Server], None]) -> None:
    server = serve(google_answers(google_upper))
    account(server)
    translator = GoogleTranslator(LANGUAGES["zh"], url=server.url)
    made = TextTranslator(translator).translate(_TEXTS, to="target", progress=Silent(), label="")
    assert [one.text for one in made] == _UPPER and not any(one.lost for one in made)
    path, asked = server.asked[-1]
    assert path == "/v3/projects/mine/locations/global:translateText" and asked["mimeType"] == "text/html"
    assert (asked["sourceLanguageCode"], asked["targetLanguageCode"]) == ("en", "zh-CN")
    assert asked["contents"] == ['Run <span translate="no">7</span> at 5 &lt; 6 &amp; wait.', "Two sentences. In a line."]
    assert len(dict(translator.sentences(["a" * 1999 + str(number) for number in range(40)], to="english"))) == 40
    assert len(server.asked) > 4 and all(len("".join(one["contents"])) <= 20_000 for _, one in server.asked)
    translator.close()


@pytest.mark.parametrize(("status", "error", "message"), [
    (403, "PERMISSION_DENIED", "refused the request"), (401, "UNAUTHENTICATED", "refused the request"),
    (429, "RESOURCE_EXHAUSTED", "quota is used up"), (400, "INVALID_ARGUMENT", "does not translate en to es"),
    (503, "UNAVAILABLE", "Google failed"),
])
def test_what_google_may_answer(serve: Callable[[Answer], Server], account: Callable[[Server], None], status: int, error: str,
                                message: str) -> None:
    server = serve(google_answers(lambda _: (status, {"error": {"code": status, "message": error, "status": error}})))
    account(server)
    translator = GoogleTranslator(LANGUAGES["es"], url=server.url, patience=0.5)
    with pytest.raises(ModelError, match=message):
        dict(translator.sentences(["Hello."], to="target"))


@pytest.mark.parametrize("nonsense", ["<html>I am a proxy</html>", {"translations": []}])
def test_google_that_is_none(serve: Callable[[Answer], Server], account: Callable[[Server], None], nonsense: Any) -> None:
    server = serve(google_answers(lambda _: (200, nonsense)))
    account(server)
    with pytest.raises(ModelError, match="Google"):
        dict(GoogleTranslator(LANGUAGES["es"], url=server.url, patience=0.5).sentences(["Hello."], to="target"))


def test_google_and_its_key(serve: Callable[[Answer], Server], account: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch,
                            tmp_path: Path) -> None:
    server = serve(google_answers(google_upper))
    account(server)
    server.close()
    # No port that nobody listens at may be read as a status: the client's sentence names it.
    for url in (server.url, "http://127.0.0.1:42971"):
        with pytest.raises(ModelError, match="Google failed"):
            dict(GoogleTranslator(LANGUAGES["es"], url=url, patience=0.5).sentences(["Hello."], to="target"))
    (tmp_path / "key.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="finds no key"):
        GoogleTranslator(LANGUAGES["es"], url=server.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ModelError, match="finds no key"):
        GoogleTranslator(LANGUAGES["es"], url=server.url)
