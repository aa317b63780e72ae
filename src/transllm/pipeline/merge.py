"""merge: the adapter goes into the weights once, and the folder proves that it answers as the adapter model did."""

from __future__ import annotations

import torch

from transllm.errors import ModelError
from transllm.evaluation.scoring import divergence
from transllm.files import read_jsonl
from transllm.model import enable_packed, load_folder, load_merged, save_folder
from transllm.model.load import DTYPES
from transllm.pipeline.stage import Context, Result
from transllm.tcot import Message

_PROOF = 8  # chains that both models read


def merge(context: Context) -> Result:
    """Write a plain Hugging Face folder: model, tokenizer, chat template, generation settings.

    Raises:
        ModelError: the reloaded model differs from the adapter model by more than ``merge.max_kl``.
    """
    settings = context.recipe.merge
    exact, _ = load_merged(context.run / "extend", context.run / "finetune", dtype=torch.float32)
    stored, _ = load_folder(context.run / "extend")
    dtype = DTYPES.get(settings.dtype, stored.dtype)
    del stored
    spans, renderer = context.spans, context.renderer
    merged, _ = load_merged(context.run / "extend", context.run / "finetune", dtype=dtype)
    if merged.generation_config is not None:
        merged.generation_config.pad_token_id = spans.pad_id
        merged.generation_config.eos_token_id = sorted(renderer.stop_ids)
    save_folder(merged, context.folder)
    spans.save(context.folder)
    del merged
    reloaded, tokenizer = load_folder(context.folder, dtype=torch.float32)
    if not tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True):
        raise ModelError("The merged tokenizer's chat template renders nothing. This is a bug; please report it.")
    enable_packed(exact)
    enable_packed(reloaded)
    answers = []
    for row in read_jsonl(context.run / "bridge" / "chains.jsonl")[:_PROOF]:
        chain = renderer.chain(query_en=row["query_en"], answer_en=row["answer_en"], answer=row["answer"])
        answers.append((renderer.prompt([Message("user", row["query"], "target")]), renderer.answer(chain)))
    if not answers:  # nothing was bridged, which is no error where fine-tuning is skipped: the original's own answers will do
        answers = [(renderer.prompt([Message("user", row["prompt"])]), renderer.answer(renderer.recovery(row["answer"])))
                   for row in read_jsonl(context.run / "recover" / "conversations.jsonl")[:_PROOF]]
    found = divergence(exact, reloaded, answers, vocabulary=spans.size, opening=())
    if not found.kl <= settings.max_kl:
        raise ModelError(f"The merged model is not the adapter model: KL {found.kl:.4f} nats a token, at most {settings.max_kl} is allowed "
                         "(merge.max_kl). Set merge.dtype to float32.")
    return Result(metrics={"kl_to_adapter_model": found.kl, "same_next_token": found.same, "max_kl": settings.max_kl,
                           "dtype": str(dtype).removeprefix("torch.")})
