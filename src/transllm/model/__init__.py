"""Chat models: load one, grow its vocabulary, choose what of it trains, merge that."""

from transllm.model.adapter import Adapted, attach, trained_parameters
from transllm.model.attention import PACKED, Documents
from transllm.model.grow import grow
from transllm.model.initial import METHODS, Known, Start, interleaved, start_of
from transllm.model.load import LoadedModel, check_sizes, end_of_turn_ids, load_chat_model, load_folder, place, save_folder
from transllm.model.packed import APART, choose_attention, enable_packed, hidden_states
from transllm.model.precision import compute_dtype, default_device
from transllm.model.proof import RowProof, copy_rows, prove_rows
from transllm.model.quantize import load_to_train
from transllm.model.saved import adapter_digest, load_merged
from transllm.model.shard import Sharing, shard, sharing_asked
from transllm.model.source import ChatTokenizer, context_of, load_chat_tokenizer, original_digest

__all__ = [
    "APART",
    "METHODS",
    "PACKED",
    "Adapted",
    "ChatTokenizer",
    "Documents",
    "Known",
    "LoadedModel",
    "RowProof",
    "Sharing",
    "Start",
    "adapter_digest",
    "attach",
    "check_sizes",
    "choose_attention",
    "compute_dtype",
    "context_of",
    "copy_rows",
    "default_device",
    "enable_packed",
    "end_of_turn_ids",
    "grow",
    "hidden_states",
    "interleaved",
    "load_chat_model",
    "load_chat_tokenizer",
    "load_folder",
    "load_merged",
    "load_to_train",
    "original_digest",
    "place",
    "prove_rows",
    "save_folder",
    "shard",
    "sharing_asked",
    "start_of",
    "trained_parameters",
]
