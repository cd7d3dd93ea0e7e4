"""Answers: what was found in one sentence, how sure that is, and what to do next. Sentences are made here only."""
