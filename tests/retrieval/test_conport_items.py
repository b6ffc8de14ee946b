from ragtune_mcp.core.retrieval.conport_items import scan_conport


class Items:
    """ConPort with fixed rows."""

    def __init__(self, decisions=(), progress=(), patterns=(), custom=()):
        self.rows = decisions, progress, patterns, custom

    def get_decisions(self):
        return list(self.rows[0])

    def get_progress(self):
        return list(self.rows[1])

    def get_system_patterns(self):
        return list(self.rows[2])

    def get_all_custom_data(self):
        return list(self.rows[3])


def custom(category, value, key="k"):
    return {"id": 1, "timestamp": "2026-01-01", "category": category, "key": key, "value": value}


def test_each_kind_of_item_becomes_a_document_with_its_own_id():
    client = Items(
        decisions=[
            {
                "id": 12,
                "summary": "Use WAL",
                "rationale": "Readers never wait.",
                "implementation_details": None,
                "tags": ["db"],
            }
        ],
        progress=[{"id": 3, "status": "DONE", "description": "Wrote the index."}],
        patterns=[{"id": 5, "name": "Outbox", "description": "Store first.", "tags": None}],
        custom=[custom("ProjectGlossary", "A rated pair.", "judgement")],
    )
    found = {d.doc_id: d.text for d in scan_conport(client).documents}
    assert found == {
        "conport:decision/12": "Decision: Use WAL\n\nReaders never wait.\n\nTags: db",
        "conport:progress/3": "Progress: DONE\n\nWrote the index.",
        "conport:system_pattern/5": "Pattern: Outbox\n\nStore first.",
        "conport:custom_data/ProjectGlossary/judgement": "ProjectGlossary: judgement\n\nA rated pair.",
    }


def test_a_decision_of_one_line_is_a_document():
    (document,) = scan_conport(Items(decisions=[{"id": 1, "summary": "Use WAL"}])).documents
    assert document.text == "Decision: Use WAL\n\nUse WAL"


def test_the_projects_own_logs_are_not_knowledge():
    rows = [custom(c, {"x": 1}) for c in ("UserFeedback", "ModelTraining", "ModelVersions", "ABTests")]
    scan = scan_conport(Items(custom=rows))
    assert scan.documents == ()
    assert scan.skipped == {"own_log": 4}


def test_structured_values_are_readable_text():
    (document,) = scan_conport(Items(custom=[custom("Config", {"größe": [1, 2]})])).documents
    assert "größe" in document.text


def test_items_without_text_are_counted():
    rows = [custom("A", v, key=str(n)) for n, v in enumerate(["", None, {}, [], "  ", 0, False])]
    scan = scan_conport(Items(custom=rows))
    assert scan.skipped == {"empty": 5}
    assert [d.doc_id for d in scan.documents] == ["conport:custom_data/A/5", "conport:custom_data/A/6"]


def test_a_long_item_is_cut_into_parts():
    text = "\n\n".join("word " * 150 for _ in range(3))
    found = scan_conport(Items(progress=[{"id": 1, "status": "TODO", "description": text}])).documents
    assert [d.doc_id for d in found] == ["conport:progress/1", "conport:progress/1~2", "conport:progress/1~3"]
    assert {d.origin for d in found} == {"conport:progress/1"}


def test_all_that_was_indexed_from_conport_is_replaced():
    assert scan_conport(Items()).replaces is None
