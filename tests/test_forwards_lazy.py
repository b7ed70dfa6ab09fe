"""A push that stands before its kernel, or a read before its wait, passes by luck, but not where a task runs
only when somebody waits for it (``TORCH_LLM_DATADIST_EMULATE_LAZY``).

Within a replay tasks follow each other at once, so there the misplaced kernel begins late. A reader is let
run, alone, as far as it gets before anything is sent."""

from __future__ import annotations

import pytest

from tests.test_emulator_modes import answer
from tests.transfers import LAYERS

PROGRAM = """
    import time
    from torch_llm_datadist import emulator, ops
    from torch_llm_datadist.emulator import faults
    from tests import transfers
    from tests.forwards import Receiver, Sender, captured, eager
    LAYERS = transfers.LAYERS

    class EarlySender(Sender):
        def forward(self):
            for layer in range(LAYERS):
                ops.push_layer(self.status, self.state.raw[2 * layer + 1], layer, self.binding.id)
                {late}
                for tensor in self.state.raw[2 * layer : 2 * layer + 2]:
                    tensor.copy_(self.value + layer)
            ops.finish(self.status, self.state.raw[-1], self.binding.id)

    class EarlyReceiver(Receiver):
        def forward(self):
            for i, layer in enumerate(self.layers):
                for k in range(2):
                    self.seen[2 * i + k].copy_(self.state.raw[2 * layer + k])
                ops.wait_layer(self.status, self.status, layer, self.binding.id)

    here, there = transfers.start(1, 0), transfers.start(2, 1)
    transfers.link(here, there)
    sender, receiver = {sender}(here, LAYERS), {receiver}(there, range(LAYERS))
    sends, receives = {how}(0, sender.forward), {how}(1, receiver.forward)
    task = sender.prepare(2, [0], [3])
    waits = faults.calls("aclrtValueWait") + {waits}
    receiver.binding.bind([task.ticket])
    sender.binding.bind([task])
    sender.value.fill_(40)
    torch.npu.synchronize(0)
    receives()
    while faults.calls("aclrtValueWait") < waits:
        time.sleep(0.001)
    until = time.monotonic() + {alone_s}
    torch.npu.set_device(1)
    aside = torch.npu.Stream(1)
    while time.monotonic() < until:
        torch.npu.default_stream(1).query()  # needs what is queued there
        with torch.npu.stream(aside):
            if receiver.seen[1].cpu().any():
                break
    sends()
    status, seen = receiver.look()
    torch.npu.synchronize(0)
    arrived = [int(tensor[3, 0]) for tensor in seen]
    print(status, int(sender.status.item()), arrived == [40 + i // 2 for i in range(2 * LAYERS)])
"""


@pytest.mark.parametrize("how", ["eager", "captured"])
@pytest.mark.parametrize(
    ("sender", "receiver", "is_right"),
    [
        ("Sender", "Receiver", True),
        pytest.param(
            "EarlySender", "Receiver", False, marks=pytest.mark.races_on_purpose("pushed too early")
        ),
        pytest.param("Sender", "EarlyReceiver", False, marks=pytest.mark.races_on_purpose("read too early")),
    ],
)
def test_lazy_mode_shows_a_push_before_its_kernel_and_a_read_before_its_wait(
    how: str, sender: str, receiver: str, is_right: bool
) -> None:
    program = PROGRAM.format(
        how=how,
        sender=sender,
        receiver=receiver,
        alone_s=60 if receiver == "EarlyReceiver" else 0.05,
        late="emulator.delay_stream(0.5)" if how == "captured" else "",
        # Of the link's stream, for each layer's start, and of the receiver's, for its flag.
        waits=2 * LAYERS if how == "eager" else 0,
    )

    # What waits for long lets all of the sender run, so a link's stream that gets no processor for a second
    # may come behind the kernel after all.
    tries = 1 if is_right else 3
    said = (answer(program, TORCH_LLM_DATADIST_EMULATE_LAZY="1") for _ in range(tries))
    assert f"0 0 {is_right}" in said
