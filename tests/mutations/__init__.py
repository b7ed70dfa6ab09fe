"""Small edits that break one guarantee of the emulated runtime each. For every one of them a test must fail:
``make mutations`` sees to it. See ``__main__.py`` for how, and the lists beside it for what.
"""
