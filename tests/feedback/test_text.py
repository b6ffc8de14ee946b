from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune_mcp.core.feedback.text import has_html, plain_query, query_key, scrub, strip_html


@pytest.mark.parametrize(
    ("html", "plain"),
    [
        ("<p>Reset the <b>cache</b> &amp; wait.</p>", "Reset the cache & wait."),
        ("one<br>two", "one\ntwo"),
        ("<div>keep</div><script>var a = 1;</script><style>p{}</style>", "keep"),
        ("<ul><li>first</li><li>second</li></ul>", "first\nsecond"),
        ("<p>a List<String> here</p>", "a List<String> here"),
    ],
)
def test_html_is_replaced_by_its_text(html, plain):
    assert strip_html(html) == plain


@pytest.mark.parametrize(
    "text",
    [
        "why does a < b fail and c > d not",
        "what is List<String> in Java",
        "removes the <base> tag from <head> when a page has none",
        "escape &lt;div&gt; as &amp;lt;",
    ],
)
def test_text_about_markup_is_left_alone(text):
    assert not has_html(text)
    assert strip_html(text) == text


def test_an_element_that_is_never_closed_does_not_swallow_the_rest():
    assert strip_html("<div>before</div><script>after") == "before\nafter"


def test_a_query_loses_markdown_but_keeps_code_names():
    assert (
        plain_query("## **how** do I call [`__init__`](https://x.y/z)\n twice?")
        == "how do I call __init__ twice?"
    )


@given(st.text())
def test_a_plain_query_is_one_line_without_controls_or_surrogates(text):
    query = plain_query(text)
    assert query == " ".join(query.split())
    assert not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in query)


@given(st.text(alphabet=st.characters()))
def test_scrubbing_twice_changes_nothing_more(text):
    assert scrub(scrub(text)) == scrub(text)


def test_lone_surrogates_become_replacement_characters():
    assert scrub("a\ud800b\0c") == "a\ufffdbc"


@pytest.mark.parametrize(
    "other", ["How is the Cache reset?", "how  is the cache, reset", "ＨＯＷ is the cache reset!"]
)
def test_case_width_and_punctuation_do_not_make_another_query(other):
    assert query_key(other) == query_key("how is the cache reset")


def test_word_order_makes_another_query():
    assert query_key("cache reset") != query_key("reset cache")


@pytest.mark.parametrize("piece", ["<", "<a ", "</p", "[", "[a](", "**", "`", "<p>"])
def test_hostile_repetition_is_read_to_its_end(piece):
    # Quadratic patterns would need minutes for these.
    plain_query(piece * 50_000)
