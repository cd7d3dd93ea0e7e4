"""What the words after `commbench` do: one file per command, each loaded when it runs."""
