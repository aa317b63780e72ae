"""What translators call our languages."""

from __future__ import annotations

from transllm.languages import Language

# NLLB-200's codes are those of FLORES-200: ISO 639-3 and the script (https://github.com/facebookresearch/flores).
FLORES = {
    "af": "afr_Latn", "am": "amh_Ethi", "ar": "arb_Arab", "az": "azj_Latn", "be": "bel_Cyrl", "bg": "bul_Cyrl", "bn": "ben_Beng",
    "ca": "cat_Latn", "cs": "ces_Latn", "da": "dan_Latn", "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn", "es": "spa_Latn",
    "et": "est_Latn", "eu": "eus_Latn", "fa": "pes_Arab",
    "fi": "fin_Latn", "fr": "fra_Latn", "gl": "glg_Latn", "he": "heb_Hebr", "hi": "hin_Deva",
    "hr": "hrv_Latn", "hu": "hun_Latn", "hy": "hye_Armn", "id": "ind_Latn", "it": "ita_Latn", "ja": "jpn_Jpan", "ka": "kat_Geor",
    "kk": "kaz_Cyrl", "km": "khm_Khmr", "ko": "kor_Hang", "lo": "lao_Laoo", "lt": "lit_Latn", "lv": "lvs_Latn", "mn": "khk_Cyrl",
    "ms": "zsm_Latn", "my": "mya_Mymr", "ne": "npi_Deva", "nl": "nld_Latn", "no": "nob_Latn", "pl": "pol_Latn", "pt": "por_Latn",
    "ro": "ron_Latn", "ru": "rus_Cyrl", "sk": "slk_Latn", "sl": "slv_Latn", "sr": "srp_Cyrl", "sv": "swe_Latn", "sw": "swh_Latn",
    "ta": "tam_Taml", "te": "tel_Telu", "th": "tha_Thai", "tl": "tgl_Latn", "tr": "tur_Latn", "uk": "ukr_Cyrl", "ur": "urd_Arab",
    "uz": "uzn_Latn", "vi": "vie_Latn", "yo": "yor_Latn", "zh": "zho_Hans"}
# Individual languages, where Opus-MT's marks name the group that they are of.
_GROUPS = {"ar": "ara", "az": "aze", "et": "est", "fa": "fas", "lv": "lav", "mn": "mon", "ms": "msa", "ne": "nep", "no": "nor", "sw": "swa",
           "uz": "uzb"}
ENGLISH = Language("en", "English", "English")


def nllb(language: Language) -> str:
    """NLLB's code; for a language of one's own its code as it is (``{code: fon_Latn, ...}`` then works)."""
    return FLORES.get(language.code, language.code)


def m2m(language: Language) -> str:
    """M2M-100's token for a language: its codes are ISO 639-1, as ours."""
    return f"__{language.code}__"


def opus(language: Language) -> list[str]:
    """The marks that an Opus-MT model of several targets may have for a language, such as ``>>spa<<``; some models use two letters."""
    names = [FLORES.get(language.code, language.code)[:3], _GROUPS.get(language.code, language.code), language.code]
    return [f">>{name}<<" for name in dict.fromkeys(names)]


def deepl(language: Language, *, source: bool) -> str:
    """DeepL's code. As targets some languages need a variant."""
    code = {"no": "nb"}.get(language.code, language.code)
    variant = {"en": "en-US", "pt": "pt-PT", "zh": "zh-HANS"}.get(code, code)
    return (code if source else variant).upper()


def google(language: Language) -> str:
    """Google Cloud Translation's code."""
    return {"zh": "zh-CN"}.get(language.code, language.code)
