"""Judging exercises from outside the process that answers them.

Two sides, and a wire between them:

- *inside* (``grading/inside``, the only folder of this package that a box can see): learners' code
  runs there, and whatever it says is data of unknown origin. ``server`` has loaded torch and forks
  boxes, ``keeper`` is the life of one, ``wire`` the frames.
- *outside* (everything else): ``reader`` finds the answers in a notebook without running it,
  ``walls`` says what holds a box, ``boxes`` asks them questions under limits, ``exchange`` carries
  the messages between ranks, ``judging`` draws the cases, computes what is right and compares
  (``comparison``), ``command`` grades a class, ``report`` writes what came of it.

What is right never goes inside: only cases go in, only plain data comes out, and both the
comparison and every limit are outside.
"""
