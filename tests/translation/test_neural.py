"""Tiny models of the three families, converted by the real converter: the same words as the library they were published for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from transllm.errors import ModelError
from transllm.languages import LANGUAGES
from transllm.progress import Silent
from transllm.translation import TextTranslator
from transllm.translation.codes import FLORES, opus

pytest.importorskip("ctranslate2", reason="the extra 'ctranslate2' is not installed")
from transllm.translation.neural import CTranslate2Translator

SPANISH, THAI, BASQUE = LANGUAGES["es"], LANGUAGES["th"], LANGUAGES["eu"]
_TEXTS = ["The library is open.", "A bridge!", "Where is the quick garden of the old bridge?"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of a few sentences."""
    folder = tmp_path_factory.mktemp("pieces")
    text = folder / "text.txt"
    spanish = ["La biblioteca está abierta.", "¡Un puente!", "¿Dónde está el jardín rápido?"]
    text.write_text("\n".join([*_TEXTS, *spanish] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "sp"), vocab_size=90, model_type="bpe",
                                             character_coverage=1.0, minloglevel=2)
    return folder / "sp.model"


_SIZES: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                          "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 512,
                          "init_std": 0.5}


def _tokens(pieces: Path) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]


def _m2m(pieces: Path, folder: Path) -> Path:
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    folder.mkdir()
    words = ["<s>", "<pad>", "</s>", "<unk>", *_tokens(pieces)[3:]]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8")
    shutil.copy(pieces, folder / "sentencepiece.bpe.model")
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = M2M100Config(vocab_size=len(words) + 100 + 8, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
                          **_SIZES)
    M2M100ForConditionalGeneration(config).eval().save_pretrained(folder)
    return folder


def _nllb(pieces: Path, folder: Path) -> Path:
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    folder.mkdir()
    words = ["<s>", "<pad>", "</s>", "<unk>", *_tokens(pieces)[3:]]
    tokenizer = NllbTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = M2M100Config(vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, **_SIZES)
    M2M100ForConditionalGeneration(config).eval().save_pretrained(folder)
    return folder


def _marian(pieces: Path, folder: Path, *, marks: tuple[str, ...] = (), pair: tuple[str, str] | None = None) -> Path:
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    folder.mkdir()
    words = ["</s>", "<unk>", *_tokens(pieces)[3:], *marks, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8")
    for name in ("source.spm", "target.spm"):
        shutil.copy(pieces, folder / name)
    source, target = pair or (None, None)
    tokenizer = MarianTokenizer(str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), source_lang=source,
                                target_lang=target)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = MarianConfig(vocab_size=len(words), pad_token_id=len(words) - 1, eos_token_id=0, bos_token_id=0, forced_eos_token_id=None,
                          decoder_start_token_id=len(words) - 1, **_SIZES)
    MarianMTModel(config).eval().save_pretrained(folder)
    return folder


def _generated(folder: Path, texts: list[str], source: str | None, target: str | None) -> list[str]:
    """What transformers makes of the texts, greedily, sentence by sentence."""
    from transformers import AutoModelForSeq2SeqLM, M2M100Tokenizer, MarianTokenizer, NllbTokenizer

    kind: Any = {"m2m": M2M100Tokenizer, "nllb": NllbTokenizer, "opus": MarianTokenizer}[folder.name]
    tokenizer = kind.from_pretrained(str(folder), **({"src_lang": source, "tgt_lang": target} if source else {}))
    model = AutoModelForSeq2SeqLM.from_pretrained(str(folder))
    first = {} if target is None else {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(
        target if "_" in target else f"__{target}__")}
    found = []
    for text in texts:
        ids = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=40, num_beams=1, do_sample=False, **first)
        hidden = {*tokenizer.all_special_tokens, *getattr(tokenizer, "lang_token_to_id", {})}  # random models write them too
        tokens = [token for token in tokenizer.convert_ids_to_tokens(ids[0].tolist()) if token not in hidden]
        found.append(" ".join(tokenizer.convert_tokens_to_string(tokens).split()))
    return found


def _translated(translator: CTranslate2Translator, texts: list[str], to: str = "target") -> list[str]:
    made = dict(translator.sentences(texts, to=to))  # type: ignore[arg-type]
    return [" ".join(made[number].text.split()) for number in range(len(texts))]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models never end: 40 tokens show as much as 400."""
    monkeypatch.setattr("transllm.translation.neural._MOST_TOKENS", 40)


@pytest.mark.parametrize(("name", "source", "target"), [("m2m", "en", "es"), ("nllb", "eng_Latn", "spa_Latn")])
def test_the_words_of_transformers(pieces: Path, tmp_path: Path, short: None, name: str, source: str, target: str) -> None:
    folder = {"m2m": _m2m, "nllb": _nllb}[name](pieces, tmp_path / name)
    translator = CTranslate2Translator(str(folder), SPANISH, cache=tmp_path / "cache", beam_size=1)
    there, back = _translated(translator, _TEXTS), _translated(translator, _TEXTS, "english")
    assert there == _generated(folder, _TEXTS, source, target)
    assert back == _generated(folder, _TEXTS, target, source)
    assert there != back, "the tokens of the languages count"


def test_opus_has_one_direction_a_model(pieces: Path, tmp_path: Path, short: None) -> None:
    folder = _marian(pieces, tmp_path / "opus", pair=("en", "es"))
    translator = CTranslate2Translator(str(folder), SPANISH, cache=tmp_path / "cache", beam_size=1)
    assert _translated(translator, _TEXTS) == _generated(folder, _TEXTS, None, None)
    with pytest.raises(ModelError, match="from Spanish to English: it translates from 'en' to 'es'"):
        _translated(translator, _TEXTS, "english")
    with pytest.raises(ModelError, match="from English to Thai"):
        CTranslate2Translator(str(folder), THAI, cache=tmp_path / "cache")
    back = _marian(pieces, tmp_path / "back", pair=("es", "en"))
    both = CTranslate2Translator(str(folder), SPANISH, cache=tmp_path / "cache", to_english=str(back), beam_size=1)
    assert len(_translated(both, _TEXTS, "english")) == 3


def test_opus_of_several_targets_is_told_which(pieces: Path, tmp_path: Path, short: None) -> None:
    folder = _marian(pieces, tmp_path / "opus", marks=(">>spa<<", ">>fra<<"))
    spanish = CTranslate2Translator(str(folder), SPANISH, cache=tmp_path / "cache", beam_size=1)
    french = CTranslate2Translator(str(folder), LANGUAGES["fr"], cache=tmp_path / "cache", beam_size=1)
    assert _translated(spanish, _TEXTS) == _generated(folder, [f">>spa<< {text}" for text in _TEXTS], None, None)
    assert _translated(spanish, _TEXTS) != _translated(french, _TEXTS)
    with pytest.raises(ModelError, match=r"to Thai: it translates to >>spa<<, >>fra<<"):
        CTranslate2Translator(str(folder), THAI, cache=tmp_path / "cache")


def test_converted_once_and_found_as_a_folder_of_its_own(pieces: Path, tmp_path: Path, short: None,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _m2m(pieces, tmp_path / "m2m")
    first = CTranslate2Translator(str(folder), SPANISH, cache=tmp_path / "cache", beam_size=2)
    (made,) = (tmp_path / "cache" / "ctranslate2").glob("m2m-*")
    monkeypatch.setattr("ctranslate2.converters.TransformersConverter", None)
    again = CTranslate2Translator(str(folder), SPANISH, cache=tmp_path / "cache", beam_size=2)
    assert again.identity == first.identity
    with pytest.raises(ModelError, match="tokenizer"):
        CTranslate2Translator(str(made), SPANISH, cache=tmp_path / "cache")
    for file in folder.iterdir():
        if not (made / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, made)
    moved = made.rename(tmp_path / "own")
    own = CTranslate2Translator(str(moved), SPANISH, cache=tmp_path / "cache", beam_size=2)
    assert _translated(own, _TEXTS) == _translated(first, _TEXTS)
    shutil.rmtree(tmp_path / "m2m")
    many = [f"{text} {number}" for number in range(300) for text in _TEXTS]
    texts = TextTranslator(own).translate(many[:7], to="target", progress=Silent(), label="")
    assert len(texts) == 7 and texts[0].cut, "it never ends, and says so"


@pytest.mark.parametrize(("language", "code"), [(BASQUE, "__eu__")])
def test_no_weights_for_the_pair(pieces: Path, tmp_path: Path, language: Any, code: str) -> None:
    with pytest.raises(ModelError, match=f"no token '{code}' for {language.name}"):
        CTranslate2Translator(str(_m2m(pieces, tmp_path / "m2m")), language, cache=tmp_path / "cache")


def test_what_is_no_model_of_the_families(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        CTranslate2Translator(str(tmp_path / "none"), SPANISH, cache=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ModelError, match="none of NLLB-200"):
        CTranslate2Translator(str(tmp_path / "other"), SPANISH, cache=tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": "marian"}', encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be converted"):
        CTranslate2Translator(str(tmp_path / "torn"), SPANISH, cache=tmp_path)


def test_every_language_has_codes() -> None:
    assert set(FLORES) == {*LANGUAGES, "en"}
    assert ">>spa<<" in opus(SPANISH) and opus(LANGUAGES["sw"])[:2] == [">>swh<<", ">>swa<<"]
