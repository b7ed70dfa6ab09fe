"""C++ unit tests, a fuzzer and a smoke test without any Python in them, alone or under a sanitizer.

``python -m tests.cpp plain``, ``asan`` or ``tsan`` builds and runs them; tests/test_cpp.py runs the plain
ones.
"""
