from ragtune_mcp.core.retrieval.markup import markdown_sections, rst_sections, text_sections


def md(text):
    return [(s.anchor, s.title, s.body.strip()) for s in markdown_sections(text, "f.md") if s.body.strip()]


def rst(text):
    return [(s.anchor, s.title, s.body.strip()) for s in rst_sections(text, "f.rst") if s.body.strip()]


def test_markdown_is_cut_at_headings_with_the_headings_above_as_title():
    assert md("intro\n\n# A\n\none\n\n## B ##\n\ntwo\n\n### C\nthree\n\n## D\nfour\n\n# E\nfive\n") == [
        ("", "f.md", "intro"),
        ("a", "A", "one"),
        ("b", "A > B", "two"),
        ("c", "A > B > C", "three"),
        ("d", "A > D", "four"),
        ("e", "E", "five"),
    ]


def test_setext_headings_are_headings():
    assert md("Title\n=====\n\none\n\nSub\n---\n\ntwo\n") == [
        ("title", "Title", "one"),
        ("sub", "Title > Sub", "two"),
    ]


def test_headings_inside_code_quotes_and_lists_are_text():
    text = "# A\n\n```sh\n# not\n```\n\n~~~\n## nor this\n~~~\n\n    # indented\n\n> # quoted\n\n- # listed\n"
    assert [anchor for anchor, _, _ in md(text)] == ["a"]


def test_a_skipped_level_keeps_the_headings_above():
    assert md("# A\n\nx\n\n#### D\n\ny\n\n## B\n\nz\n")[1:] == [("d", "A > D", "y"), ("b", "A > B", "z")]


def test_front_matter_is_not_text():
    assert md("---\ntitle: x\ntags: [a]\n---\n# A\n\nbody\n") == [("a", "A", "body")]


def test_a_rule_at_the_start_is_not_front_matter_without_its_end():
    assert md("---\n\nbody\n") == [("", "f.md", "---\n\nbody")]


def test_heading_markup_is_not_part_of_titles_and_anchors():
    assert md("# Use `api` of [this](http://x)\n\nb\n") == [("use-api-of-this", "Use api of this", "b")]


def test_hash_without_space_is_no_heading():
    assert [a for a, _, _ in md("#hashtag\n\ntext\n")] == [""]


def test_rst_sections_follow_the_order_of_their_styles():
    text = "=====\nTitle\n=====\n\nintro\n\nOne\n---\n\na\n\nSub\n~~~\n\nb\n\nTwo\n---\n\nc\n"
    assert rst(text) == [
        ("title", "Title", "intro"),
        ("one", "Title > One", "a"),
        ("sub", "Title > One > Sub", "b"),
        ("two", "Title > Two", "c"),
    ]


def test_rst_tables_transitions_and_code_are_not_titles():
    table = "=====  =====\nA      B\n=====  =====\n1      2\n=====  =====\n"
    text = f"Title\n=====\n\n{table}\npara\n\n----\n\n::\n\n    x\n    ====\n"
    assert [a for a, _, _ in rst(text)] == ["title"]


def test_an_underline_shorter_than_its_text_is_no_title():
    assert [a for a, _, _ in rst("A long line\n---\n\nx\n")] == [""]


def test_the_last_line_of_a_paragraph_above_a_rule_is_no_title():
    assert [a for a, _, _ in rst("first line\nsecond line\n-----------\n\nx\n")] == [""]


def test_plain_text_is_one_section_under_the_name_of_the_file():
    (section,) = text_sections("one\n\ntwo", "notes.txt")
    assert (section.anchor, section.title, section.body) == ("", "notes.txt", "one\n\ntwo")
