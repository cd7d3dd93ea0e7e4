"""Stragglers: slow ranks and slow links, named from samples, with evidence."""
