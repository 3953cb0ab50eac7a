"""The checks of ``sessionsdb.testing``: they pass on good implementations, and find broken ones."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from sessionsdb import SessionsDB
from sessionsdb.protocols import SessionBroker, SessionStore
from sessionsdb.testing import BROKER_CHECKS, STORE_CHECKS, Check, RuleBroken, Subject, subject_of
from tests.support.broken_variants import VARIANTS, Variant, memory_subject

CHECKS = {str(check): check for check in STORE_CHECKS + BROKER_CHECKS}
PARTS = sorted({check.part for check in CHECKS.values()})

NOT_CHECKED = {"search"}
"""The verbs without a rule: see the docstring of ``sessionsdb.testing.conformance``."""


@pytest.mark.parametrize("part", PARTS)
async def test_our_store_and_broker_hold_every_rule(db: SessionsDB, part: str) -> None:
    for check in CHECKS.values():
        if check.part == part:
            await check(subject_of(db.in_namespace(check.name)))


@pytest.mark.parametrize("check", CHECKS.values(), ids=str)
async def test_an_implementation_in_memory_holds_a_rule(check: Check) -> None:
    await check(memory_subject())


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=[f"{one.check}-{n}" for n, one in enumerate(VARIANTS)]
)
async def test_a_broken_implementation_is_found(variant: Variant) -> None:
    with pytest.raises(RuleBroken) as broken:
        await CHECKS[variant.check](variant.make())
    assert broken.value.check is CHECKS[variant.check]
    assert str(broken.value).startswith(f"{variant.check}: {CHECKS[variant.check].rule} Seen: ")


def test_every_part_has_broken_variants() -> None:
    assert {variant.check.partition(".")[0] for variant in VARIANTS} == set(PARTS)


async def test_an_unexpected_error_is_the_cause() -> None:
    subject = memory_subject()
    check = CHECKS["transcripts.delete_removes"]

    async def broken(*_args: Any, **_more: Any) -> None:
        raise ConnectionError("the store is away")

    subject.store.delete = broken
    with pytest.raises(RuleBroken, match="Seen: ConnectionError: the store is away") as raised:
        await check(subject)
    assert isinstance(raised.value.__cause__, ConnectionError)


async def test_the_values_that_were_seen_and_expected_are_shown() -> None:
    subject = memory_subject()

    async def broken(*_args: Any, **_more: Any) -> list[Any]:
        return [{"role": "user", "content": "not this one"}, "x" * 1000]

    subject.store.load = broken
    with pytest.raises(RuleBroken) as raised:
        await CHECKS["transcripts.a_key_is_appended_once"](subject)
    assert "[{'role': 'user', 'content': 'not this one'}, 'xxx" in raised.value.seen
    assert "…, not [{'role'" in raised.value.seen
    assert len(raised.value.seen) < 700


def test_every_rule_is_named_once_and_is_a_sentence() -> None:
    checks = STORE_CHECKS + BROKER_CHECKS
    assert len(CHECKS) == len(checks)
    assert len({check.rule for check in checks}) == len(checks)
    assert all(check.rule.endswith(".") for check in checks)


class Recorder:
    """An object that notes the names of its methods that are called."""

    def __init__(self, of: Any, called: set[str]) -> None:
        self._of = of
        self._called = called

    def __getattr__(self, name: str) -> Any:
        self._called.add(name)
        return getattr(self._of, name)


async def test_the_checks_call_every_verb_of_the_protocols() -> None:
    called: set[str] = set()
    for check in CHECKS.values():
        subject = memory_subject()
        store: Any = Recorder(subject.store, called)
        broker: Any = Recorder(subject.broker, called)
        await check(Subject(store, broker, subject.run_turns))
    verbs = {
        name
        for protocol in (SessionStore, SessionBroker)
        for name, _ in inspect.getmembers(protocol, inspect.isfunction)
        if not name.startswith("_")
    }
    assert verbs - called == NOT_CHECKED
