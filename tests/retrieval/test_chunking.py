from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune_mcp.core.retrieval.chunking import WORDS, Section, count_words, cut, parts, slug


def words(n, start=0):
    return " ".join(f"w{i}" for i in range(start, start + n))


def ids(sections):
    return [d.doc_id for d in cut("files", "a.md", sections)]


def test_a_short_section_is_one_document_with_its_title():
    (document,) = cut("files", "a.md", [Section("setup", "Guide > Setup", "Install it.")])
    assert (document.doc_id, document.text) == ("a.md#setup", "Guide > Setup\n\nInstall it.")
    assert (document.source, document.origin, document.title) == ("files", "a.md", "Guide > Setup")


def test_repeated_anchors_are_numbered_and_never_collide_with_a_real_one():
    sections = [Section(a, "T", "x") for a in ("setup", "setup", "setup-1", "setup")]
    assert ids(sections) == ["a.md#setup", "a.md#setup-1", "a.md#setup-1-1", "a.md#setup-2"]


def test_sections_without_a_body_are_dropped():
    assert ids([Section("a", "A", " \n\n"), Section("b", "B", "text")]) == ["a.md#b"]


def test_parts_of_a_long_section_carry_its_title_and_numbered_ids():
    body = "\n\n".join(words(100, 100 * i) for i in range(5))
    found = cut("files", "a.md", [Section("s", "T", body)])
    assert [d.doc_id for d in found] == ["a.md#s", "a.md#s~2", "a.md#s~3"]
    assert all(d.text.startswith("T\n\n") for d in found)


def test_a_hash_in_a_path_cannot_be_mistaken_for_an_anchor():
    assert cut("files", "c#/a.md", [Section("x", "T", "b")])[0].doc_id == "c%23/a.md#x"


def test_long_text_is_cut_at_paragraphs_when_they_fit():
    one, two, three = words(120), words(80, 200), words(150, 400)
    assert parts(f"{one}\n\n{two}\n\n{three}") == [f"{one}\n\n{two}", three]


def test_a_long_paragraph_is_cut_at_sentence_ends():
    sentence = words(59) + " end."
    found = parts(" ".join([sentence] * 8))
    assert all(part.endswith("end.") for part in found)
    assert [count_words(part) for part in found] == [180, 180, 120]


def test_a_fenced_block_with_blank_lines_stays_whole():
    fence = "```python\n" + "\n\n".join(f"line_{i} = {i}" for i in range(20)) + "\n```"
    found = parts(f"{words(200)}\n\n{fence}\n\n{words(150)}")
    assert any(fence in part for part in found)


def test_a_small_rest_joins_the_part_before_it():
    found = parts(f"{words(205)}\n\n{words(20, 900)}")
    assert len(found) == 1


def test_scripts_without_spaces_are_counted_by_character():
    assert count_words("検索の設定 and more") == 7
    assert max(count_words(p) for p in parts("検索エンジンの設定を変更します。" * 60)) <= WORDS


def test_a_text_without_any_break_is_cut_by_length():
    found = parts("x" * 5000)
    assert "".join(found) == "x" * 5000
    assert max(map(len, found)) <= 2000


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab .\n`~検\t"), max_size=6000))
def test_cutting_loses_no_character_but_space_and_respects_the_limit(text):
    found = parts(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(count_words(part) <= WORDS * 1.2 and len(part) <= 2000 for part in found)


@given(st.text(max_size=300))
def test_every_heading_has_a_nonempty_anchor_without_spaces(heading):
    anchor = slug(heading)
    assert anchor
    assert " " not in anchor
    assert "#" not in anchor
    assert "~" not in anchor


def test_anchors_are_those_of_code_hosts():
    assert slug("Set up: the `API` (v2)!") == "set-up-the-api-v2"
    assert slug("Ünïcode & 日本語") == "ünïcode--日本語"
    assert slug("!!!") == "section"
