"""Judging exercises. Answers are plain data (numbers, text, lists, dicts, tensors); what is right is never where an answer runs."""
