"""A push that stands before its kernel passes by luck, but not where a task runs only when
somebody waits for it (``TORCH_LLM_DATADIST_EMULATE_LAZY``)."""

from __future__ import annotations

import pytest

from tests.test_emulator_modes import answer

PROGRAM = """
    from torch_llm_datadist import ops
    from tests import transfers
    from tests.forwards import Receiver, Sender, captured, eager
    LAYERS = transfers.LAYERS

    class EarlySender(Sender):
        def forward(self):
            for layer in range(LAYERS):
                ops.push_layer(self.status, self.state.raw[2 * layer + 1], layer, self.binding.id)
                for tensor in self.state.raw[2 * layer : 2 * layer + 2]:
                    tensor.copy_(self.value + layer)
            ops.finish(self.status, self.state.raw[-1], self.binding.id)

    here, there = transfers.start(1, 0), transfers.start(2, 1)
    transfers.link(here, there)
    sender, receiver = {sender}(here, LAYERS), {receiver}(there, range(LAYERS))
    sends, receives = {how}(0, sender.forward), {how}(1, receiver.forward)
    task = sender.prepare(2, [0], [3])
    receiver.binding.bind([task.ticket])
    sender.binding.bind([task])
    sender.value.fill_(40)
    torch.npu.synchronize(0)
    sends()
    receives()
    status, seen = receiver.look()
    torch.npu.synchronize(0)
    arrived = [int(tensor[3, 0]) for tensor in seen]
    print(status, int(sender.status.item()), arrived == [40 + i // 2 for i in range(2 * LAYERS)])
"""


@pytest.mark.parametrize(
    ("how", "sender", "receiver", "is_right"),
    [
        ("eager", "Sender", "Receiver", True),
        ("captured", "Sender", "Receiver", True),
        pytest.param(
            *("eager", "EarlySender", "Receiver", False),
            marks=pytest.mark.races_on_purpose("pushes before the kernel, which the checker finds, too"),
        ),
    ],
)
def test_lazy_mode_shows_a_push_before_its_kernel(
    how: str, sender: str, receiver: str, is_right: bool
) -> None:
    program = PROGRAM.format(how=how, sender=sender, receiver=receiver)

    assert answer(program, TORCH_LLM_DATADIST_EMULATE_LAZY="1") == f"0 0 {is_right}"
