"""A gateway that is killed in the moment between a usage record and the end of its request writes no second one."""

from __future__ import annotations

import pytest

from provisioners.gateway.journal import SLOT_BYTES
from provisioners.gateway.protocol import RequestOutcome
from tests.gateway_callers import Caller, StubModel, stream
from tests.gateway_lab import Lab, scenario

pytestmark = pytest.mark.slow


@scenario
async def test_a_record_that_was_written_in_the_moment_of_the_kill_is_not_written_again(lab: Lab) -> None:
    model = StubModel(tokens_s=20)
    await model.start()
    lab.control.publish(lab.endpoint(model.backend()))
    lab.control.refuse_usage_with = 503
    process = await lab.spawn()
    await lab.healthy(state="serving")

    assert (await stream(lab.http, lab.url, Caller("one", lab.key.plain))).whole
    async with lab.http.get(f"{lab.url}/metrics"):  # all that has ended is kept by then
        pass
    journal = lab.state / "journal"
    taken = bytearray(journal.read_bytes())
    await lab.kill(process)
    at = next(at for at in range(0, len(taken), SLOT_BYTES) if taken[at + 8])
    taken[at] = 1  # the slot as it was before it was given back
    journal.write_bytes(taken)
    await lab.spawn(token=False)
    lab.control.refuse_usage_with = 0
    await lab.healthy(spooled_records=0)

    (record,) = lab.control.records
    assert record.outcome is RequestOutcome.COMPLETED
    await model.stop()
