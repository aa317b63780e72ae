"""The proof at the end of *extend*: what the extension promises, shown on the files it wrote, told in lines and kept in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from transllm.errors import ModelError
from transllm.files import JsonLines
from transllm.model import RowProof, prove_rows
from transllm.model.proof import Rows
from transllm.pipeline.corpus import program_text, sentences
from transllm.pipeline.prepare import sample_part
from transllm.pipeline.stage import Context
from transllm.tokenizer import (
    Comparison,
    Learned,
    RoundTrips,
    Script,
    SpanTokenizer,
    prove_gguf,
    prove_kept,
    prove_round_trips,
    script_of,
)

DIFFERENCES = "differences.jsonl"
_SHOWN = 20
_TRIED = 1000
_ENGLISH = 2_000_000  # characters: more than the sentences that are compared


def prove(context: Context, spans: SpanTokenizer, learned: Learned, held: Mapping[str, Sequence[str]], before: Rows,
          model: PreTrainedModel) -> dict[str, Any]:
    """Prove the extension that lies in the stage's folder. Gives the manifest's figures.

    Args:
        held: held-out texts, "target" and "english".
        before: rows of the original model.

    Raises:
        ModelError: a promise is broken; the message says which.
    """
    written = SpanTokenizer.load(context.folder, language=context.recipe.target)
    least = context.recipe.extend.min_identical if context.recipe.target.latin else 1.0
    script = Script() if context.recipe.target.latin else learned.script or script_of(held["target"])
    english = held["english"]
    if script:  # what is learned of it depends on no English text, so all of it is evidence
        english = [*english, *sample_part(context.run, "english", "train", characters=_ENGLISH)]
    compared = {what: prove_kept(written.original, written.extended, texts, what=what, least=least) for what, texts in
                (("English", sentences(english, without=script)), ("code", program_text(without=script)))}
    _list_differences(context, compared)
    trips = prove_round_trips(spans.original, written.extended, texts=sentences(held["target"], without=Script(), count=_TRIED))
    _prove_folder(context, written, [*held["target"], *held["english"]])
    gguf = prove_gguf(written.extended, first=spans.original_size)
    rows = prove_rows(before, model, context.folder)
    for line in lines(compared, trips, gguf, rows, dropped=learned.dropped.get("english", 0)):
        context.progress.say(line)
    return {"english_identical": _shown(compared["English"]), "code_identical": _shown(compared["code"]),
            "proof": {"round_trips": asdict(trips), "gguf_pieces": gguf, "rows": asdict(rows), "least_identical": least}}


def lines(compared: Mapping[str, Comparison], trips: RoundTrips, gguf: int, rows: RowProof, *, dropped: int) -> list[str]:
    """The proof for the reader."""
    told = ["Proof:"]
    for what, found in compared.items():
        differ = found.sentences - found.identical
        unit = "lines" if what == "code" else "sentences"
        told.append(f"  {what}: {found.identical:,} of {found.sentences:,} {unit} that no filter saw are cut as before"
                    + (f"; the {differ:,} others are in {DIFFERENCES}" if differ else ""))
    return [
        *told, f"  {dropped:,} sub-words were left out for that",
        f"  round trip: {_bytes(trips)}, {trips.byte_strings:,} random byte strings, {trips.texts:,} texts"
        if trips.single_bytes else
        f"  round trip: {trips.texts:,} texts; the tokenizer has no pieces for bytes, so what it does not know is unknown as before",
        f"  {rows.old:,} old rows are bit for bit as before, in memory and in the files; {rows.new:,} are new, {rows.padding:,} are "
        f"padding; embedding and head are {'one matrix' if rows.tied else 'two matrices'}",
        "  config, tokenizer, embedding and head agree on the size; saved and loaded, all is the same",
        f"  {gguf:,} new pieces came back from a GGUF file"]


def _bytes(trips: RoundTrips) -> str:
    if not trips.lacking:
        return f"all {trips.single_bytes} bytes"
    return (f"{trips.single_bytes} of 256 bytes (the others, {bytes(trips.lacking).hex(' ')}, have no token in the original, "
            "which loses them)")


def _prove_folder(context: Context, written: SpanTokenizer, texts: Sequence[str]) -> None:
    """What others load by ``AutoTokenizer``, which builds parts of some tokenizers in code, cuts as the file says."""
    lines = sentences(texts, without=Script(), count=_TRIED)
    if AutoTokenizer.from_pretrained(context.folder)(lines)["input_ids"] != written.extended(lines)["input_ids"]:
        raise ModelError(f"AutoTokenizer cuts text otherwise than the tokenizer.json in {context.folder}. "
                         "This is a bug in the extension; please report it with the model's name.")


def _list_differences(context: Context, compared: Mapping[str, Comparison]) -> None:
    path = context.folder / DIFFERENCES
    path.unlink(missing_ok=True)
    with JsonLines(path) as file:
        for what, found in compared.items():
            for difference in found.differences:
                file.write({"kind": what, **difference})


def _shown(found: Comparison) -> dict[str, Any]:
    return {**asdict(found), "differences": found.differences[:_SHOWN]}
