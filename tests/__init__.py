"""The tests of this package, and the helpers that they share.

Nothing here is shipped in the wheel.
"""
