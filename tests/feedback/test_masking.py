from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune_mcp.core.feedback.masking import RULES, mask

SECRETS = {
    "private_key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "api_key": "ghp_" + "a1B2" * 9,
    "bearer": "Bearer abcdef0123456789abcdef",
    "url_password": "https://ann:pa55word@db.local/x",
    "assigned_secret": "DB_PASSWORD = 's3cret99'",
    "email": "ann.lee+test@mail.co.uk",
    "card_number": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "social_security_number": "078-05-1120",
    "phone": "+44 20 7946 0958",
}
HARMLESS = [
    "see user@example.com and git@github.com:owner/repo.git",
    "password: required, token = os.environ['TOKEN']",
    "the key is sorted, the secret sauce",
    "order 1234567890123 of 2026-03-01 12:30:45",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "127.0.0.1:8084 and 10.0.0.255",
    "PEP 440 version 1.2.3.4 at line 100-200",
    "torch==2.13.0 AB12 CD34",
    "http://localhost:8000/path@v2",
]


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_every_rule_hides_its_secret_and_counts_it(rule):
    counts: Counter[str] = Counter()
    secret = SECRETS[rule]
    masked = mask(f"before {secret} after", counts)
    assert masked.startswith("before ") and masked.endswith(" after")
    assert counts == {rule: 1}
    assert not any(
        part in masked for part in secret.replace("'", " ").split() if any(c.isdigit() for c in part)
    )


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_documentation_stays(text):
    assert mask(text) == text


def test_the_name_of_a_secret_stays_readable():
    assert mask("api_key: 'abc123def456'") == "api_key: '[SECRET]'"


def test_a_card_number_with_a_wrong_check_digit_stays():
    assert mask("4111 1111 1111 1112") == "4111 1111 1111 1112"


def test_an_unfinished_private_key_is_hidden_to_the_end():
    assert mask("x -----BEGIN PRIVATE KEY-----\nMIIEow") == "x [PRIVATE KEY]"


@given(st.text() | st.sampled_from(list(SECRETS.values())) | st.sampled_from(HARMLESS))
def test_masking_twice_changes_nothing_more(text):
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "piece", ["a@", "+1 ", "1-", "token", "a.", "://a:", "AB12 ", "eyJ", "password = ", "1", "key"]
)
def test_hostile_repetition_is_read_to_its_end(piece):
    mask(piece * 50_000)
