"""Messages that nobody would send, to the parser of the protocol and to instances that listen; lists of
blocks, to the planner.

``make fuzz``; ``python -m tests.fuzz --help``. Millions of plans are faster in C++, where a sanitizer looks
on, too: tests/cpp/fuzz_plan.cpp.

seeds.py      one valid message of each kind, plans, and what corpus/ and corpus_plans/ were made from
mutate.py     bytes and values → other bytes, by a seed
parser.py     any bytes are a message or one of two errors
planner.py    any bytes are a plan that moves what it should, or are refused with the reason
listener.py   sequences of messages, also in the wrong order, to a live instance
"""
