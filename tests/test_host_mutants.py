"""Faults of hosts that go back or move rows: each is killed by a case of the schedule and located in a recording."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from tests.mutants.hosts import HOSTS, FaultyHost, HostFault
from tests.mutants.recording import RecordingEngine, locate_recorded

TOL = 1e-4
IN_ATTENTION = [fault for fault in HOSTS if fault.name != "last-state"]


def located(bundle: Bundle, fault: HostFault) -> str:
    """Where a recording of the fault says that it begins; empty where every output matches."""
    vectors, engine = bundle.vectors(fault.case), RecordingEngine(bundle)
    host = FaultyHost(engine, fault, vectors.case)
    found = locate_recorded(bundle, engine, vectors, TOL, host)
    return found.probe if found is not None else ""


def test_a_right_host_is_never_accused(subject: Bundle) -> None:
    for name in sorted({fault.case for fault in HOSTS}):
        fine = HostFault("none", "nothing", name, "", lambda step, feeds, done: feeds)
        assert located(subject, fine) == ""


@pytest.mark.parametrize("fault", IN_ATTENTION, ids=lambda fault: fault.name)
def test_a_host_that_goes_back_wrongly_is_killed_and_located(subject: Bundle, fault: HostFault) -> None:
    found = located(subject, fault)
    assert any(fnmatchcase(found, pattern) for pattern in fault.where.split("|")), found


@pytest.mark.slow
def test_the_state_of_a_rejected_token_is_killed_and_located(tmp_path: Path) -> None:
    from tests.test_states import exported

    (fault,) = (fault for fault in HOSTS if fault.name == "last-state")
    _, bundle = exported("olmo_hybrid", tmp_path, profile="ort")
    found = located(bundle, fault)
    assert any(fnmatchcase(found, pattern) for pattern in fault.where.split("|")), found
