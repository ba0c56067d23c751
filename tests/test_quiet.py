"""What transformers and torch log beside the errors that they raise stays off the terminal."""

from __future__ import annotations

import logging

import pytest

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")


def test_the_traceback_of_a_shape_that_does_not_fit_is_raised_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from kvparity.exporter.contract.quiet import quiet_libraries

    def refuse() -> None:
        with FakeTensorMode(), pytest.raises(RuntimeError, match=r"reduction dim|shapes cannot be multiplied"):
            torch.ones(2, 3) @ torch.ones(4, 5)

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(caplog.handler)
    try:
        with quiet_libraries():
            refuse()
        assert not caplog.records
        refuse()  # torch logs it where nobody keeps it quiet
        assert caplog.records
    finally:
        logger.removeHandler(caplog.handler)
