"""The side of learners' code. Nothing in here knows what is right, nothing outside believes what
comes from here.
"""
