"""What a program holds: collectives that take the way which a profile has for them.

`commbench.load_profile(path).communicator(group)` and `commbench.communicator(group)` are the way in:
docs/guide/communicator.md. Nothing here measures, and nothing is read from disk after the profile.
"""
