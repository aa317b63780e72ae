"""A server's replies are the engine's; what may pass is tried again, what will not is told at once, and done replies are never lost."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from transllm.errors import ModelError
from transllm.generation import Conversation, LocalEngine, Reply, ReplySampling, Sampling, ServerEngine, TransformersEngine, Turn
from transllm.model import LoadedModel
from transllm.recipe.schema import EngineSettings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="the extra 'server' is not installed")

ASKED = [Conversation((Turn("user", text),)) for text in ("Who are you?", "Who is the captain?", "The teacher?", "Where is the library?")]
BUSY = (503, '{"error": {"message": "Loading model"}}', {})


Answer = tuple[int, str, dict[str, str]]  # status, body, headers


class Endpoint:
    """Answers requests from ``script`` while it lasts, then with the tiny chat model."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.script: list[Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.models: tuple[str, ...] = ("tiny",)
        self.completes = True
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, path: str, request: dict[str, Any], key: str | None) -> Answer:
        with self._lock:  # the model is one
            self.asked.append(request)
            self.times.append(time.monotonic())
            if self.script:
                return self.script.pop(0)
            if self.keys and key not in self.keys:
                return 401, '{"error": {"message": "Incorrect API key provided"}}', {}
            if path == "/v1/completions" and not self.completes:
                return 404, "Not Found", {}
            if request["model"] not in self.models:
                return 404, json.dumps({"error": {"message": f"The model {request['model']} does not exist."}}), {}
            return self._with_model(path, request)

    def _with_model(self, path: str, request: dict[str, Any]) -> Answer:
        sampling = ReplySampling(request["max_tokens"], request["temperature"], request["top_p"], request.get("seed", 0))
        if path == "/v1/chat/completions":
            turns = tuple(Turn(message["role"], message["content"]) for message in request["messages"])
            (reply,) = TransformersEngine(self.loaded).generate([Conversation(turns)], sampling=sampling)
            if reply.finish == "too long":
                return 400, json.dumps({"error": {"message": "the request exceeds the available context size, try increasing it",
                                                  "type": "exceed_context_size_error"}}), {}
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish}
            return 200, json.dumps({"choices": [choice], "usage": {"prompt_tokens": reply.prompt_tokens,
                                                                   "completion_tokens": reply.tokens}}), {}
        ids = self.loaded.tokenizer(request["prompt"], add_special_tokens=False)["input_ids"]
        (made,) = LocalEngine(self.loaded.model, pad_id=0, vocabulary=len(self.loaded.tokenizer)).generate(
            [ids], sampling=Sampling(sampling.max_new_tokens, stop_ids=frozenset({0})))
        text = self.loaded.tokenizer.decode(made.ids, skip_special_tokens=True)
        return 200, json.dumps({"choices": [{"text": text, "finish_reason": made.finish}]}), {}


@pytest.fixture
def endpoint(tiny_chat: LoadedModel) -> Iterator[Endpoint]:
    found = Endpoint(tiny_chat)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = (self.headers["authorization"] or "").removeprefix("Bearer ")
            status, text, headers = found.answer(self.path, request, key)
            body = text.encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def open_server(endpoint: Endpoint, **settings: Any) -> ServerEngine:
    known: dict[str, Any] = {"name": "server", "url": endpoint.url, "model": "tiny", "attempts": 3, **settings}
    return ServerEngine(EngineSettings(**known), lambda: endpoint.loaded.tokenizer, pause=0.01)


def said(replies: list[Reply]) -> list[tuple[int, str, str, int, int]]:
    return sorted((reply.index, reply.text, reply.finish, reply.prompt_tokens, reply.tokens) for reply in replies)


def fails(endpoint: Endpoint, conversation: Conversation = ASKED[0], **settings: Any) -> str:
    with pytest.raises(ModelError) as raised:
        list(open_server(endpoint, **settings).generate([conversation], sampling=ReplySampling(4)))
    return str(raised.value)


def test_its_greedy_replies_are_those_of_the_engine_behind_it(endpoint: Endpoint) -> None:
    here = list(TransformersEngine(endpoint.loaded).generate(ASKED, sampling=ReplySampling(12)))
    there = list(open_server(endpoint).generate(ASKED, sampling=ReplySampling(12)))
    assert said(there) == said(here)
    assert all("seed" not in request for request in endpoint.asked)


def test_the_users_turn_is_completed_from_the_template(endpoint: Endpoint) -> None:
    conversation = Conversation((*ASKED[0].turns, Turn("assistant", "A captain.")), speaker="user")
    (here,) = TransformersEngine(endpoint.loaded).generate([conversation], sampling=ReplySampling(12))
    (there,) = open_server(endpoint).generate([conversation], sampling=ReplySampling(12))
    assert there.text == here.text
    assert endpoint.asked[0]["prompt"].endswith("A captain.<|im_end|>\n<|im_start|>user\n")
    assert there.tokens > 0 and there.prompt_tokens > 0  # the server counted none


def test_equal_conversations_get_seeds_of_their_own_and_the_same_ones_again(endpoint: Endpoint) -> None:
    for _ in range(2):
        list(open_server(endpoint).generate([ASKED[0]] * 3, sampling=ReplySampling(2, temperature=1.0)))
    seeds = [sorted(request["seed"] for request in endpoint.asked[start: start + 3]) for start in (0, 3)]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3


@pytest.mark.parametrize("failure", [
    BUSY, (500, "oops", {}), (429, '{"error": {"message": "slow down"}}', {}), (200, "", {}), (200, "<html>starting</html>", {}),
    (200, '{"choices": []}', {}), (200, '{"error": {"message": "out of memory"}}', {}), (200, '{"choices": [{"finish_reason": null}]}', {}),
    (200, "[1]", {}), (200, '{"choices": [7]}', {})])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, failure: Any) -> None:
    endpoint.script = [failure, failure]
    (reply,) = open_server(endpoint).generate(ASKED[:1], sampling=ReplySampling(4))
    assert reply.tokens > 0 and len(endpoint.asked) == 3
    endpoint.script = [failure] * 3
    message = fails(endpoint)
    assert endpoint.url in message and "3 times in a row" in message and "same command again" in message


def test_retry_after_is_waited_for(endpoint: Endpoint) -> None:
    endpoint.script = [(429, "{}", {"retry-after": "0.3"})]
    list(open_server(endpoint).generate(ASKED[:1], sampling=ReplySampling(2)))
    assert endpoint.times[1] - endpoint.times[0] >= 0.3
    endpoint.script = [(429, "{}", {"retry-after": "7200"})]
    assert "120 minutes" in fails(endpoint)


def test_requests_a_minute(endpoint: Endpoint) -> None:
    list(open_server(endpoint, requests_a_minute=600).generate(ASKED, sampling=ReplySampling(1)))
    assert endpoint.times[-1] - endpoint.times[0] >= 0.28  # three gaps of a tenth of a second


def test_an_endpoint_that_is_down(endpoint: Endpoint) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    message = fails(endpoint, url=url)
    assert f"The server at {url} cannot be reached" in message and "3 times in a row" in message


def test_keys(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.keys = {"right"}
    monkeypatch.setenv("OPENAI_API_KEY", "another server's")
    assert "recover.engine.key_env" in fails(endpoint)
    monkeypatch.delenv("TINY_KEY", raising=False)
    with pytest.raises(ModelError, match=r"'TINY_KEY', which recover\.engine\.key_env names, is not set"):
        open_server(endpoint, key_env="TINY_KEY")
    monkeypatch.setenv("TINY_KEY", "wrong")
    refused = fails(endpoint, key_env="TINY_KEY")
    assert "refused the key (401: Incorrect API key provided.)" in refused and "'TINY_KEY'" in refused and "wrong" not in refused
    assert len(endpoint.asked) == 2  # a refused key is not tried again
    monkeypatch.setenv("TINY_KEY", "right")
    assert list(open_server(endpoint, key_env="TINY_KEY").generate(ASKED[:1], sampling=ReplySampling(2)))


def test_an_unknown_model_and_a_wrong_address(endpoint: Endpoint) -> None:
    assert "does not know the model 'other'" in fails(endpoint, model="other")
    endpoint.script = [(404, "Not Found", {})]
    assert "recover.engine.url" in fails(endpoint)
    assert len(endpoint.asked) == 2


def test_a_server_that_cannot_complete_text(endpoint: Endpoint) -> None:
    endpoint.completes = False
    message = fails(endpoint, Conversation(speaker="user"))
    assert "cannot speak as the user" in message and "recover.prompts" in message


def test_a_conversation_that_is_too_long_is_told_and_the_others_are_answered(endpoint: Endpoint) -> None:
    long = Conversation((Turn("user", "The teacher never saw the city library. " * 200),))
    found = {reply.index: reply for reply in open_server(endpoint).generate([ASKED[0], long], sampling=ReplySampling(4))}
    assert found[1].finish == "too long" and not found[1].text and found[1].prompt_tokens > 256
    assert found[0].tokens > 0


def test_another_template_or_model_is_told_once(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    list(open_server(endpoint).generate(ASKED, sampling=ReplySampling(2)))
    assert not caplog.records
    other = (200, '{"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 99}}', {})
    endpoint.script = [other, other]
    list(open_server(endpoint).generate(ASKED[:2], sampling=ReplySampling(2)))
    (record,) = caplog.records
    assert "counts 99 tokens" in record.getMessage()


def test_done_replies_come_before_the_error(endpoint: Endpoint) -> None:
    done: list[Reply] = []
    with pytest.raises(ModelError, match="no credit left"):
        for reply in open_server(endpoint, concurrency=1).generate(ASKED, sampling=ReplySampling(4)):
            done.append(reply)
            if len(done) == 2:
                endpoint.script = [(429, '{"error": {"code": "insufficient_quota"}}', {})] * 4
    assert 2 <= len(done) < 4


def test_a_stop_does_not_wait_for_replies(endpoint: Endpoint) -> None:
    endpoint.script = [(429, "{}", {"retry-after": "60"})] * 3
    replies = open_server(endpoint, concurrency=4).generate(ASKED, sampling=ReplySampling(4))
    assert next(iter(replies)).tokens > 0
    started = time.monotonic()
    replies.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5
