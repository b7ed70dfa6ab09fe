"""Messages that nobody would send, to the parser of the protocol and to instances that listen.

``make fuzz``; ``python -m tests.fuzz --help``. Plans are fuzzed in C++: tests/cpp/fuzz_plan.cpp.

seeds.py      one valid message of each kind, and what corpus/ was made from
mutate.py     bytes and values → other bytes, by a seed
parser.py     any bytes are a message or one of two errors
listener.py   sequences of messages, also in the wrong order, to a live instance
"""
