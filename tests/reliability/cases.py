"""Faults and stages, and what is known of each before it was tried."""

from __future__ import annotations

from itertools import product

CUT = "cut off"
FAULTS = {
    "killed": "SIGKILL",
    "frozen": "SIGSTOP; it goes on when the survivor has seen what there is to see",
    CUT: "the network between its host and the survivor's, which is healed when the survivor has seen it",
}
STAGES = {
    "connect": "it listens, and is asked for a link afterwards",
    "handshake": "it has read the last message of the handshake, and not answered",
    "import": "it is linked, and nothing of its memory is mapped yet",
    "queued push": "pushes to it wait behind a kernel of the survivor's stream",
    "running push": "half of a copy to it has been written",
    "wait": "the survivor's stream waits for a layer that it is to send",
    "unlink": "it is linked, and asked to end that",
    "finalize": "it is linked, and the survivor finalizes its instance",
}
CASES = list(product(FAULTS, STAGES))
KEEP_ALIVE_S = 1.0
KEEP_ALIVE_OF_CUTS_S = 3.0  # the default: their hosts' threads all have to run on this machine
MOST_PAUSE_S = 3.0  # between pushes to the bystander, while the fault lasts
ENDS_WITHIN_S = 30.0  # on a machine that is busy with other things; an idle one needs a tenth
