"""Processes that link, push, pull, give up, die and freeze at random, and every byte of theirs checked.

``make soak SECONDS=60 SEED=7 PROCS=6``; ``python -m tests.soak --help``. Read ``soak.py`` first.

schedule.py    seed → what happens, one step after the other
soak.py        the conductor: starts steps, stands still from time to time to look for leaks
transfers.py   each kind of transfer, from the choice of blocks to the check of what arrived
faults.py      kills, freezes, restarts
links.py       the link of two members, made when it is needed
doubts.py      blocks that a failed transfer may still write, until the library says that it cannot
blocks.py      what each block of a member holds, and who uses it
content.py     a block's stamp → its bytes
member.py      a member as the conductor sees it
worker.py      the process of a member
commands.py    what it can be told to do
findings.py    what went wrong, and what was done; the report
"""
