"""The languages that a recipe can name by code; a recipe may define any other with ``language: {code, name, ...}``.

The table holds what the method needs of a language and nothing else: its English name (for instructions to the
model), its own name (for instructions in the language), whether its script is Latin (then new sub-words can collide
with English ones), and how a user asks for a translation. Codes are ISO 639-1.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """One target language.

    Attributes:
        code: ISO 639-1 (or 639-3) code, lower case.
        name: English name.
        native: the language's name in itself.
        latin: whether it is written in the Latin script.
        spaced: whether words are separated by spaces.
    """

    code: str
    name: str
    native: str
    latin: bool = True
    spaced: bool = True

    @property
    def marker(self) -> str:
        """The token that opens text in this language, e.g. ``<TH>`` (the paper's form)."""
        return f"<{self.code.upper()}>"


_TABLE = (
    Language("af", "Afrikaans", "Afrikaans"),
    Language("am", "Amharic", "አማርኛ", latin=False),
    Language("ar", "Arabic", "العربية", latin=False),
    Language("az", "Azerbaijani", "azərbaycanca"),
    Language("be", "Belarusian", "беларуская", latin=False),
    Language("bg", "Bulgarian", "български", latin=False),
    Language("bn", "Bengali", "বাংলা", latin=False),
    Language("ca", "Catalan", "català"),
    Language("cs", "Czech", "čeština"),
    Language("da", "Danish", "dansk"),
    Language("de", "German", "Deutsch"),
    Language("el", "Greek", "ελληνικά", latin=False),
    Language("es", "Spanish", "español"),
    Language("et", "Estonian", "eesti"),
    Language("eu", "Basque", "euskara"),
    Language("fa", "Persian", "فارسی", latin=False),
    Language("fi", "Finnish", "suomi"),
    Language("fr", "French", "français"),
    Language("gl", "Galician", "galego"),
    Language("he", "Hebrew", "עברית", latin=False),
    Language("hi", "Hindi", "हिन्दी", latin=False),
    Language("hr", "Croatian", "hrvatski"),
    Language("hu", "Hungarian", "magyar"),
    Language("hy", "Armenian", "հայերեն", latin=False),
    Language("id", "Indonesian", "bahasa Indonesia"),
    Language("it", "Italian", "italiano"),
    Language("ja", "Japanese", "日本語", latin=False, spaced=False),
    Language("ka", "Georgian", "ქართული", latin=False),
    Language("kk", "Kazakh", "қазақша", latin=False),
    Language("km", "Khmer", "ខ្មែរ", latin=False, spaced=False),
    Language("ko", "Korean", "한국어", latin=False),
    Language("lo", "Lao", "ລາວ", latin=False, spaced=False),
    Language("lt", "Lithuanian", "lietuvių"),
    Language("lv", "Latvian", "latviešu"),
    Language("mn", "Mongolian", "монгол", latin=False),
    Language("ms", "Malay", "bahasa Melayu"),
    Language("my", "Burmese", "မြန်မာ", latin=False, spaced=False),
    Language("ne", "Nepali", "नेपाली", latin=False),
    Language("nl", "Dutch", "Nederlands"),
    Language("no", "Norwegian", "norsk"),
    Language("pl", "Polish", "polski"),
    Language("pt", "Portuguese", "português"),
    Language("ro", "Romanian", "română"),
    Language("ru", "Russian", "русский", latin=False),
    Language("sk", "Slovak", "slovenčina"),
    Language("sl", "Slovenian", "slovenščina"),
    Language("sr", "Serbian", "српски", latin=False),
    Language("sv", "Swedish", "svenska"),
    Language("sw", "Swahili", "Kiswahili"),
    Language("ta", "Tamil", "தமிழ்", latin=False),
    Language("te", "Telugu", "తెలుగు", latin=False),
    Language("th", "Thai", "ไทย", latin=False, spaced=False),
    Language("tl", "Tagalog", "Tagalog"),
    Language("tr", "Turkish", "Türkçe"),
    Language("uk", "Ukrainian", "українська", latin=False),
    Language("ur", "Urdu", "اردو", latin=False),
    Language("uz", "Uzbek", "oʻzbekcha"),
    Language("vi", "Vietnamese", "Tiếng Việt"),
    Language("yo", "Yoruba", "Yorùbá"),
    Language("zh", "Chinese", "中文", latin=False, spaced=False),
)

LANGUAGES: dict[str, Language] = {language.code: language for language in _TABLE}
