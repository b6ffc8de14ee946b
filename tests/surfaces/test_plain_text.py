import pytest

from ragtune_mcp.surface.plain_text import DOCUMENT_LIMIT, presentable, shortened, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\n\twith breaks", "plain text\n\twith breaks"),
        ("Ünï – 漢字 – עברית", "Ünï – 漢字 – עברית"),
        ("a\u202eb\u2066c\u2069", "abc"),
        ("a\u200bb\u2060c\ufeffd\u00ade", "abcde"),
        ("hid\U000e0068\U000e0069den", "hidden"),
        ("x\U000e0101y", "xy"),
        ("bell\x07 escape\x1b[31m", "bell escape[31m"),
        ("\ud800lone", "lone"),
        ("one\r\ntwo\u2028three", "one\ntwo\nthree"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\U0001f468\u200d\U0001f469\ufe0f", "\U0001f468\u200d\U0001f469\ufe0f"),
        ("a\u200d\u200c\u200d\u200cb", "ab"),
    ],
)
def test_invisible_and_bidirectional_characters_are_removed_and_scripts_kept(text, shown):
    assert visible(text) == shown


def test_long_text_is_cut_at_a_word_and_says_how_much_is_missing():
    text = "word " * 400
    cut = shortened(text)
    kept, mark = cut.split(" […")
    assert len(kept) <= DOCUMENT_LIMIT
    assert kept.endswith("word")
    assert mark == f"{len(text) - len(kept)} more characters]"


def test_short_text_is_not_touched():
    assert shortened("short") == "short"


def test_only_text_fields_are_shortened_and_all_strings_cleaned():
    long = "y" * 2000
    shown = presentable(
        {"text": long, "id": long, "list": [{"te\u202ext": "a\u200b"}], "n": 1.5, "none": None}
    )
    assert len(shown["text"]) < 1300
    assert shown["id"] == long
    assert shown["list"] == [{"text": "a"}]
    assert shown["n"] == 1.5
    assert shown["none"] is None
