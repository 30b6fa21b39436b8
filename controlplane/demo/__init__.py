"""The lived-in demo: an estate with thirty days of history, made by the same operations and passes as any other.

Only the clock and the hardware are simulated, and both say so: operations take its time, passes run under it, and
the estates live in this process until they are handed to the sandbox server. Never beside real providers.
"""
