"""Judging exercises from outside the process that answers them.

Two sides, and frames of plain data between them:

- *inside* (``grading/inside``, the only folder of this package that a sandbox can see): learners'
  code runs there, and whatever it says is data of unknown origin. ``zygote`` has loaded torch and
  forks sandboxes, ``supervisor`` is the life of one, ``answer`` one question in it.
- *outside* (everything else): ``reader`` finds the answers in a notebook without running it,
  ``isolation`` says what holds a sandbox, ``factory`` opens sandboxes, ``sandbox`` asks them
  questions under limits, ``exchange`` carries the messages between ranks. ``judging`` draws the
  cases, asks a side (``sides``, ``sandboxed``), computes what is right and compares
  (``difference``), ``hints`` explains, ``targets`` takes memory and time. ``command`` grades a
  class, ``report`` writes what came of it; ``practice`` is what chapters import.

What is right never goes inside: only cases go in, only plain data comes out, and both the
comparison and every limit are outside.
"""
