"""Secrets and personal data out of every text before it is written.

The rules are few and meant to be read in one sitting. Each has a name, which is counted, and a replacement
that says what stood there. Not masked, because a rule would hit more documentation than people: names, postal
addresses, IP addresses, and the mail addresses of the reserved example domains (RFC 2606).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

_Accept = Callable[[re.Match[str]], bool]


class MaskRule(NamedTuple):
    """One kind of text to hide; `accept` rejects look-alikes."""

    name: str
    pattern: re.Pattern[str]
    replacement: str
    accept: _Accept


def _luhn(match: re.Match[str]) -> bool:
    digits = [int(c) for c in match.group() if c.isdecimal()]
    if len(set(digits)) == 1:
        return False
    doubled = (d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits)))
    return sum(doubled) % 10 == 0


def _iban(match: re.Match[str]) -> bool:
    code = match.group().replace(" ", "")
    rotated = code[4:] + code[:4]
    return 15 <= len(code) <= 34 and int("".join(str(int(c, 36)) for c in rotated)) % 97 == 1


def _person(match: re.Match[str]) -> bool:
    local, _, domain = match.group().lower().rpartition("@")
    reserved = domain.split(".")[-2:]
    return (
        local != "git"
        and reserved[0] != "example"
        and reserved[-1] not in ("example", "test", "invalid", "localhost")
    )


def _looks_random(match: re.Match[str]) -> bool:
    value = match.group("value")
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def _enough_digits(match: re.Match[str]) -> bool:
    return 9 <= sum(c.isdigit() for c in match.group()) <= 15


def _always(_: re.Match[str]) -> bool:
    return True


RULES: tuple[MaskRule, ...] = (
    MaskRule(
        "private_key",
        re.compile(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
            re.DOTALL,
        ),
        "[PRIVATE KEY]",
        _always,
    ),
    MaskRule("jwt", re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}"), "[TOKEN]", _always),
    MaskRule(
        "api_key",
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,64}"
            r"|xox[abeprs]-[A-Za-z0-9-]{10,255}|sk-(?:[a-z]{2,8}-)?[A-Za-z0-9_-]{20,255}|[srp]k_(?:live|test)_\w{16,255}"
            r"|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,255})"
        ),
        "[API KEY]",
        _always,
    ),
    MaskRule(
        "bearer",
        re.compile(r"(?i)\bbearer\s+(?P<value>[a-z0-9._~+/-]{16,2000}=*)"),
        "Bearer [TOKEN]",
        _looks_random,
    ),
    MaskRule(
        "url_password", re.compile(r"(?<=://)[^\s/:@]{1,200}:[^\s/@]{1,200}(?=@)"), "[CREDENTIALS]", _always
    ),
    MaskRule(
        "assigned_secret",
        re.compile(
            r"(?i)\b(?P<name>\w{0,30}(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?key|token))"
            r"(?P<sep>[\"']?\s{0,3}[:=]\s{0,3}[\"']?)(?P<value>[^\s\"',;<>(){}\[\]$]{6,200})"
        ),
        r"\g<name>\g<sep>[SECRET]",
        _looks_random,
    ),
    MaskRule(
        "email",
        re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
        "[EMAIL]",
        _person,
    ),
    MaskRule("card_number", re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"), "[CARD NUMBER]", _luhn),
    MaskRule(
        "iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), "[IBAN]", _iban
    ),
    MaskRule(
        "social_security_number", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), "[ID NUMBER]", _always
    ),
    MaskRule(
        "phone",
        re.compile(
            r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}(?!\w)"
            r"|(?<![\w+.-])(?:1[ .-])?\(?\d{3}\)?[ .-]\d{3}[.-]\d{4}(?![\w-])"
        ),
        "[PHONE]",
        _enough_digits,
    ),
)
# Whatever no rule can match without: texts that miss it are passed through at the cost of one search.
_SUSPECT = re.compile(
    r"@|-----BEGIN|eyJ|AKIA|ASIA|gh[pousr]_|github_pat|glpat-|xox|\bsk-|[srp]k_|AIza|hf_|npm_|pypi-"
    r"|(?i:bearer|passw|pwd|secret|key|token)|\d{3}[ .)-]{1,2}\d{2}|\d{9}|[A-Z]{2}\d{2}|\+\d"
)


def mask(text: str, counts: Counter[str] | None = None) -> str:
    """The text with secrets and personal data replaced; idempotent.

    Args:
        text: any text.
        counts: raised by one per replacement, under the rule's name.

    Returns:
        The masked text.
    """
    if not _SUSPECT.search(text):
        return text
    for rule in RULES:
        text = _apply(rule, text, counts)
    return text


def _apply(rule: MaskRule, text: str, counts: Counter[str] | None) -> str:
    def replace(match: re.Match[str]) -> str:
        if not rule.accept(match):
            return match.group()
        if counts is not None:
            counts[rule.name] += 1
        return match.expand(rule.replacement)

    return rule.pattern.sub(replace, text)
