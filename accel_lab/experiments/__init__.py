"""One experiment per technique: what the panel and the command line run, ``Knobs`` and ``run``."""
