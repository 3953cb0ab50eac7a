"""Rules of state: state, update_state."""

from __future__ import annotations

import asyncio
from typing import Any

from sessionsdb.errors import InvalidArgument, UnknownSession, VersionConflict
from sessionsdb.testing.conformance.checks import Part, Subject, equal, refused, true
from sessionsdb.types import SpawnRequest

PART = Part("state")


async def _register(subject: Subject, *ids: str, peer: str = "ada") -> None:
    for id in ids:
        await subject.broker.register(id, channel="x", peer=peer)


@PART.rule("A scope that was never written to is empty, at version 0.")
async def a_new_scope_is_empty(subject: Subject) -> None:
    await _register(subject, "s")
    state = await subject.store.state("s")
    equal((state.values, state.version), ({}, 0), "the state")
    await refused(UnknownSession, subject.store.state("unknown"), "state of an unknown id")
    scope: Any = "no such scope"
    await refused(InvalidArgument, subject.store.state("s", scope=scope), "an unknown scope")


@PART.rule("update_state merges: other keys stay, and None removes a key.")
async def changes_are_merged(subject: Subject) -> None:
    await _register(subject, "s")
    await subject.store.update_state("s", {"a": 1, "b": [True, {"x": "\x00"}]})
    state = await subject.store.update_state("s", {"a": None, "c": ""})
    equal(state.values, {"b": [True, {"x": "\x00"}], "c": ""}, "the answer")
    equal(await subject.store.state("s"), state, "the stored state")


@PART.rule("The version of a scope grows with changes, and equal values change nothing.")
async def equal_values_keep_the_version(subject: Subject) -> None:
    await _register(subject, "s")
    first = await subject.store.update_state("s", {"a": 1})
    true(first.version >= 1, f"the first version is {first.version}")
    same = await subject.store.update_state("s", {"a": 1})
    equal(same.version, first.version, "the version after equal values")
    second = await subject.store.update_state("s", {"a": 2})
    true(second.version > first.version, "the version does not grow")


@PART.rule("With another expected_version update_state raises, and writes nothing.")
async def a_state_has_an_expected_version(subject: Subject) -> None:
    await _register(subject, "s")
    version = (await subject.store.update_state("s", {"a": 1})).version
    late = subject.store.update_state("s", {"a": 2}, expected_version=version + 1)
    await refused(VersionConflict, late, "update_state with another expected_version")
    equal((await subject.store.state("s")).values, {"a": 1}, "the state")


@PART.rule("Each scope has its own state. A peer's is shared by its sessions and their children.")
async def scopes_are_apart(subject: Subject) -> None:
    await _register(subject, "s", "same")
    await _register(subject, "other", peer="bob")
    child = (await subject.broker.spawn("s", SpawnRequest(prompt="task"))).id
    for scope in ("session", "peer", "namespace"):
        await subject.store.update_state("s", {"in": scope}, scope=scope)

    async def seen(id: str) -> list[Any]:
        found = [
            await subject.store.state(id, scope=scope) for scope in ("session", "peer", "namespace")
        ]
        return [one.values.get("in") for one in found]

    equal(await seen("s"), ["session", "peer", "namespace"], "the states of the session")
    equal(await seen("same"), [None, "peer", "namespace"], "the states of the same peer")
    equal(await seen(child), [None, "peer", "namespace"], "the states of the child")
    equal(await seen("other"), [None, None, "namespace"], "the states of another peer")


@PART.rule("Calls at the same time that write other keys lose nothing.")
async def writers_of_other_keys_lose_nothing(subject: Subject) -> None:
    await _register(subject, "s")
    await asyncio.gather(*(subject.store.update_state("s", {f"k{n}": n}) for n in range(10)))
    values = (await subject.store.state("s")).values
    equal(values, {f"k{n}": n for n in range(10)}, "the state")


@PART.rule("delete takes the session's own state with it.")
async def a_deleted_session_has_no_state(subject: Subject) -> None:
    await _register(subject, "s")
    await subject.store.update_state("s", {"a": 1})
    await subject.store.delete("s")
    await _register(subject, "s")
    equal((await subject.store.state("s")).values, {}, "the state of the new session")
