"""Mojibake is found in every script, and what only looks like it is left alone; all sentences are invented."""

from __future__ import annotations

import pytest

from ltsft.config.scripts import script_members
from ltsft.data.mojibake import has_mojibake

# Each holds what would be bytes of UTF-8 if it were read in Windows-1252 or Windows-1251.
SOUND = [
    ("Latn", "Dát ášši lea áššáskuhtton áššiin, ja áššit šaddet."),  # Northern Sámi
    ("Latn", "Hyvä päivy, sanou ukko da pläššiy pihal."),  # Livvi
    ("Latn", "Úžas! Říšští rytíři jdou přes most, říšská rada spí."),  # Czech
    ("Latn", "“E-ei mitää…”, sanoi hän hiljää…—ja lähti, pyörryttää»…"),  # Finnish
    ("Latn", "Luvimmo ”KINOÄ” da ”PÄIVÄ”."),
    ("Latn", "Iho ruta “Ñ” rehe, ha ÑANDÉVA’ÂÂ’ pe."),  # Guarani
    ("Latn", "Ñ’uni ra ngú, pa ga ñ’ehe."),  # Otomi
    ("Latn", "Le ƒè 1984 me la, ƒèwo katã de gbeƒã."),  # Ewe
    ("Latn", "Â shə́ nə́ ku, ŋ́ Â gɔ ntə́."),  # Ghomala
    ("Latn", "ÌWÉ ORÍ Ẹ̀TÌ™ àti ‘’òwìwí’’ látì."),  # Yoruba
    ("Latn", "NÃO É «PÃO», À “ÇA” — Ærø, Åland, Ðà…"),
    ("Latn", "»Če bi šla domov,« je rekla, »Živa bi se smejala.«"),  # Slovenian
    ("Cyrl", "Аны «УАÇ» массыынанан бардылар, «СССР» – «РФ»."),  # Sakha
    ("Cyrl", "Сіль і Рівне, «США» й «СРСР», С–Р."),  # Ukrainian
    ("Cyrl", "Ёлка — «Ў», СЎ, РЎ: Рѓ Рќ Сћ Рў."),
]
SPOILT = [
    ("Latn", "Hósvík er ein bygd, ið liggur á Streymoynni"),
    ("Latn", "Łódź"),
    ("Latn", "“Ɔ bɛ” — ê"),
    ("Latn", "Dát ášši lea šaddan"),
    ("Cyrl", "Привет, мир"),
    ("Armn", "Բարեւ աշխարհ"),
    ("Mlym", "നമസ്കാരം ലോകം"),
    ("Latn", "Good night 😀"),
]


@pytest.mark.parametrize(("script", "text"), SOUND)
def test_letters_that_look_like_bytes_of_utf8_are_letters(script: str, text: str) -> None:
    assert not has_mojibake(text, script_members(script))


@pytest.mark.parametrize(("script", "text"), SPOILT)
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252", "cp1251"])
def test_utf8_read_in_another_encoding_is_found(script: str, text: str, wrong: str) -> None:
    # As browsers do, bytes that an encoding lacks become the control characters of Latin-1.
    read = "".join(bytes([b]).decode(wrong, errors="ignore") or chr(b) for b in text.encode("utf-8"))
    assert has_mojibake(read, script_members(script))


def test_traces_of_letters_of_another_script_are_none() -> None:
    assert not has_mojibake("áššá ášš", ("Latn",)), "Ogham in UTF-8, if it were bytes"
    assert not has_mojibake("Ð\x9fÑ\x80Ð¸Ð²ÐµÑ\x82", ("Latn",))
    assert has_mojibake("Ð\x9fÑ\x80Ð¸Ð²ÐµÑ\x82", ("Cyrl",))
