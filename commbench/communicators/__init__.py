"""What a program holds: collectives by the algorithms that a profile has for them.

`commbench.load_profile(path).communicator(group)` and `commbench.communicator(group)` are the entry:
docs/guide/communicator.md. Nothing here measures, and nothing is read from disk after the profile.
"""
